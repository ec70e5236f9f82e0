//! Models of several inputs: token ids, masks and what exporters compute from them.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::collections::HashMap;

use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{DType, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_passes::{InputDecl, PassError, PrepareOptions, Prepared, prepare};

const TOKENS: usize = 4;

/// A model of token ids and a mask, `[N, 4]` each, which declares nothing of their sizes.
fn model(mask: DType, initializers: Vec<(&str, Tensor)>, nodes: Vec<Node>) -> Model {
    let dims = || ["batch", "sequence"].map(|name| Dim::Symbol(name.into())).to_vec();
    let table: Vec<f32> = (0..20).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut graph = Graph {
        name: "test".into(),
        nodes,
        inputs: vec![ValueInfo::new("ids", DType::I64, dims()), ValueInfo::new("mask", mask, dims())],
        outputs: vec![ValueInfo { name: "y".into(), dtype: DType::F32, shape: None }],
        initializers: initializers.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect(),
    };
    graph.initializers.insert("table".into(), Tensor::f32([10, 2], &table));
    Model::new(graph)
}

fn tokens(name: Option<&str>) -> InputDecl {
    InputDecl { name: name.map(str::to_owned), dtype: DType::I64, shape: vec![TOKENS] }
}

fn ready(model: &Model, inputs: Vec<InputDecl>) -> Result<Prepared, PassError> {
    prepare(model.clone(), &PrepareOptions { output: "y".into(), inputs })
}

/// Prepares, checks that both compute the same for three batch sizes, and returns what was prepared.
fn check(model: &Model) -> Prepared {
    let prepared = ready(model, vec![tokens(None), tokens(None)]).unwrap();
    let after = Model::new(prepared.graph.clone());
    for batch in [1, 2, 5] {
        let count = batch * TOKENS;
        let ids: Vec<i64> = (0..count).map(|i| (i * 7 % 10) as i64).collect();
        let mask: Vec<i64> = (0..count).map(|i| i64::from(i % TOKENS <= i / TOKENS)).collect();
        let value = |values: &[i64]| Value::from_tensor(&Tensor::i64([batch, TOKENS], values)).unwrap();
        let inputs = HashMap::from([("ids".to_owned(), value(&ids)), ("mask".to_owned(), value(&mask))]);
        let [wanted, got] = [model, &after].map(|model| {
            let outputs = Interpreter::new(model).unwrap().run(&inputs).unwrap();
            outputs["y"].as_float().unwrap().clone()
        });
        assert_eq!(wanted, got);
    }
    prepared
}

/// The mask as an addend of attention scores, as BERT's export has it.
#[test]
fn additive_masks() {
    let constants = vec![
        ("one", Tensor::scalar(1.0)),
        ("lowest", Tensor::scalar(-3.4e38)),
        ("axes", Tensor::i64([2], &[1, 2])),
        ("scores", Tensor::f32([1, 2, TOKENS, TOKENS], &[0.5; 2 * TOKENS * TOKENS])),
    ];
    let nodes = vec![
        Node::new("Unsqueeze", &["mask", "axes"], &["wide"]),
        Node::new("Cast", &["wide"], &["real"]).with("to", 1i64),
        Node::new("Sub", &["one", "real"], &["inverse"]),
        Node::new("Mul", &["inverse", "lowest"], &["bias"]),
        Node::new("Add", &["scores", "bias"], &["masked"]),
        Node::new("Softmax", &["masked"], &["attention"]).with("axis", -1i64),
        Node::new("Gather", &["table", "ids"], &["embedded"]).with("axis", 0i64),
        Node::new("Unsqueeze", &["embedded", "axis"], &["values"]),
        Node::new("MatMul", &["attention", "values"], &["y"]),
    ];
    let constants = [constants, vec![("axis", Tensor::i64([1], &[1]))]].concat();
    let prepared = check(&model(DType::I64, constants, nodes));
    assert_eq!(format!("{:?}", prepared.output.shape), "[N, 2, 4, 2]");
}

/// The mask indexed by position in the batch, joined with a causal one, as recent decoders are exported.
#[test]
fn indexed_causal_masks() {
    let constants = vec![
        ("zero", Tensor::i64([], &[0])),
        ("one", Tensor::i64([], &[1])),
        ("rows", Tensor::i64([3], &[1, 2, 3])),
        ("columns", Tensor::i64([2], &[1, 2])),
        ("column", Tensor::i64([1], &[1])),
        ("last", Tensor::i64([1], &[-1])),
        ("low", Tensor::scalar(-1e9)),
        ("nothing", Tensor::scalar(0.0)),
    ];
    let nodes = vec![
        Node::new("Shape", &["ids"], &["shape"]),
        Node::new("Gather", &["shape", "zero"], &["n"]),
        Node::new("Gather", &["shape", "one"], &["t"]),
        Node::new("Range", &["zero", "n", "one"], &["examples"]),
        Node::new("Range", &["zero", "t", "one"], &["positions"]),
        Node::new("Unsqueeze", &["positions", "column"], &["queries"]),
        Node::new("GreaterOrEqual", &["queries", "positions"], &["causal"]),
        Node::new("Cast", &["mask"], &["visible"]).with("to", i64::from(DType::Bool.code())),
        Node::new("Unsqueeze", &["examples", "column"], &["example"]),
        Node::new("Expand", &["example", "shape"], &["e"]),
        Node::new("Expand", &["positions", "shape"], &["p"]),
        Node::new("Unsqueeze", &["e", "last"], &["e1"]),
        Node::new("Unsqueeze", &["p", "last"], &["p1"]),
        Node::new("Concat", &["e1", "p1"], &["places"]).with("axis", -1i64),
        Node::new("GatherND", &["visible", "places"], &["seen"]),
        Node::new("Unsqueeze", &["seen", "column"], &["keys"]),
        Node::new("And", &["causal", "keys"], &["allowed"]),
        Node::new("Where", &["allowed", "nothing", "low"], &["bias"]),
        Node::new("Softmax", &["bias"], &["soft"]).with("axis", -1i64),
        Node::new("IsNaN", &["soft"], &["nan"]),
        Node::new("Where", &["nan", "nothing", "soft"], &["attention"]),
        Node::new("Gather", &["table", "ids"], &["embedded"]).with("axis", 0i64),
        Node::new("MatMul", &["attention", "embedded"], &["y"]),
    ];
    let prepared = check(&model(DType::I64, constants, nodes));
    assert_eq!(format!("{:?}", prepared.output.shape), "[N, 4, 2]");
    let ops: Vec<&str> = prepared.graph.nodes.iter().map(|node| node.op.as_str()).collect();
    assert!(!ops.contains(&"GreaterOrEqual"), "the causal mask is a constant: {ops:?}");
    assert_eq!(ops.iter().filter(|op| **op == "Range").count(), 1, "only the batch is counted: {ops:?}");
}

/// Positions counted from the mask, as RoBERTa's export has them, and an upper triangle.
#[test]
fn positions_from_the_mask() {
    let constants = vec![
        ("axis", Tensor::i64([], &[1])),
        ("square", Tensor::f32([TOKENS, TOKENS], &[1.0; TOKENS * TOKENS])),
    ];
    let nodes = vec![
        Node::new("CumSum", &["mask", "axis"], &["counted"]),
        Node::new("Mul", &["counted", "mask"], &["positions"]),
        Node::new("Gather", &["table", "positions"], &["placed"]).with("axis", 0i64),
        Node::new("Gather", &["table", "ids"], &["embedded"]).with("axis", 0i64),
        Node::new("Add", &["placed", "embedded"], &["sum"]),
        Node::new("Trilu", &["square"], &["triangle"]),
        Node::new("MatMul", &["triangle", "sum"], &["y"]),
    ];
    check(&model(DType::I64, constants, nodes));
}

/// Of this mask the model needs the shape alone; what comes after the backbone may need all of it.
#[test]
fn inputs_stay_whatever_folding_finds() {
    let nodes = vec![
        Node::new("Shape", &["mask"], &["shape"]),
        Node::new("Gather", &["table", "ids"], &["embedded"]).with("axis", 0i64),
        Node::new("ConstantOfShape", &["shape"], &["zeros"]),
        Node::new("Unsqueeze", &["zeros", "last"], &["column"]),
        Node::new("Add", &["embedded", "column"], &["y"]),
    ];
    let mut prepared = check(&model(DType::I64, vec![("last", Tensor::i64([1], &[-1]))], nodes));
    prepared.fold_frozen(&Default::default()).unwrap();
    let names: Vec<&str> = prepared.graph.inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(names, ["ids", "mask"]);
}

fn masked_sum() -> Vec<Node> {
    vec![
        Node::new("Gather", &["table", "ids"], &["embedded"]).with("axis", 0i64),
        Node::new("Cast", &["mask"], &["real"]).with("to", 1i64),
        Node::new("Unsqueeze", &["real", "last"], &["column"]),
        Node::new("Mul", &["embedded", "column"], &["y"]),
    ]
}

#[test]
fn inputs_are_declared_in_any_order_and_converted() {
    let last = || vec![("last", Tensor::i64([1], &[-1]))];
    for dtype in [DType::I64, DType::I32, DType::Bool, DType::F32] {
        let model = model(dtype, last(), masked_sum());
        let prepared = ready(&model, vec![tokens(Some("mask")), tokens(None)]).unwrap();
        let declared: Vec<_> =
            prepared.graph.inputs.iter().map(|input| (input.name.as_str(), input.dtype)).collect();
        assert_eq!(declared, [("mask", DType::I64), ("ids", DType::I64)], "{dtype:?}");
        let model = Model::new(prepared.graph);
        let value = |values: &[i64]| Value::from_tensor(&Tensor::i64([1, TOKENS], values)).unwrap();
        let inputs =
            HashMap::from([("ids".to_owned(), value(&[1; 4])), ("mask".to_owned(), value(&[1, 0, 1, 0]))]);
        let outputs = Interpreter::new(&model).unwrap().run(&inputs).unwrap();
        let y = outputs["y"].as_float().unwrap();
        assert_eq!((y[[0, 1, 0]], y[[0, 2, 0]] != 0.0), (0.0, true), "{dtype:?}");
    }
}

#[test]
fn wrong_declarations_are_named() {
    let model = model(DType::I64, vec![("last", Tensor::i64([1], &[-1]))], masked_sum());
    let refused = |inputs: Vec<InputDecl>, expected: &str| {
        let error = ready(&model, inputs).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    };
    refused(vec![tokens(None)], "not declared: mask");
    refused(vec![], "not declared: ids, mask");
    refused(vec![tokens(Some("mask"))], "not declared: ids");
    refused(
        vec![tokens(None), tokens(Some("masks"))],
        "no input \"masks\" before its cut; inputs: ids, mask",
    );
    refused(
        vec![tokens(None), tokens(None), tokens(None)],
        "3 inputs are declared, the model has: ids, mask",
    );
    let flat = InputDecl { shape: vec![], ..tokens(None) };
    refused(vec![tokens(None), flat], "rank 2");
    let real = InputDecl { dtype: DType::F32, ..tokens(Some("mask")) };
    refused(vec![tokens(None), real], "declare it as integers");
}
