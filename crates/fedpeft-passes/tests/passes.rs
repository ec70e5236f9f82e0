//! Preparation keeps what a model computes, whatever form its exporter chose, and finds what it should find.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::collections::HashMap;

use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{DType, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_passes::{Builder, PassError, PrepareOptions, Prepared, prepare};

fn wave(shape: &[usize], scale: f32) -> Tensor {
    let values: Vec<f32> =
        (0..shape.iter().product::<usize>()).map(|i| (i as f32 * 0.73 + 0.2).sin() * scale).collect();
    Tensor::f32(shape, &values)
}

/// A model with input `x` of shape `[N, ..shape]` and output `y`.
fn model(shape: &[usize], initializers: Vec<(&str, Tensor)>, nodes: Vec<Node>) -> Model {
    let dims = std::iter::once(Dim::Symbol("batch".into())).chain(Dim::fixed(shape)).collect();
    Model::new(Graph {
        name: "test".into(),
        nodes,
        inputs: vec![ValueInfo::new("x", DType::F32, dims)],
        outputs: vec![ValueInfo { name: "y".into(), dtype: DType::F32, shape: None }],
        initializers: initializers.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect(),
    })
}

fn ready(model: &Model, shape: &[usize]) -> Result<Prepared, PassError> {
    prepare(model.clone(), &PrepareOptions::single("y", shape))
}

/// Prepares, checks that both compute the same for two batch sizes, and returns the operators left.
fn check(model: &Model, shape: &[usize]) -> Vec<String> {
    let prepared = ready(model, shape).unwrap();
    let after = Model::new(prepared.graph);
    for batch in [1, 3] {
        let x = Value::from_tensor(&wave(&[&[batch], shape].concat(), 2.0)).unwrap();
        let inputs = HashMap::from([("x".to_owned(), x)]);
        let [wanted, got] = [model, &after].map(|model| {
            let outputs = Interpreter::new(model).unwrap().run(&inputs).unwrap();
            outputs.into_values().next().unwrap()
        });
        let (wanted, got) = (wanted.as_float().unwrap(), got.as_float().unwrap());
        assert_eq!(wanted.shape(), got.shape());
        let worst = wanted.iter().zip(got).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-6, "values differ by {worst}");
    }
    after.graph.nodes.iter().map(|node| node.op.clone()).collect()
}

fn scalar(value: f32) -> Tensor {
    Tensor::scalar(value)
}

#[test]
fn gelu_is_found_in_every_order() {
    let head =
        |scale: Node| vec![scale, Node::new("Erf", &["s"], &["e"]), Node::new("Add", &["e", "one"], &["a"])];
    let divided = || Node::new("Div", &["x", "root2"], &["s"]);
    let multiplied = || Node::new("Mul", &["x", "root_half"], &["s"]);
    let forms = [
        (divided(), [Node::new("Mul", &["x", "a"], &["m"]), Node::new("Mul", &["m", "half"], &["y"])]),
        (multiplied(), [Node::new("Mul", &["a", "half"], &["m"]), Node::new("Mul", &["x", "m"], &["y"])]),
        (divided(), [Node::new("Mul", &["half", "x"], &["m"]), Node::new("Mul", &["m", "a"], &["y"])]),
    ];
    for (scale, tail) in forms {
        let constants = vec![
            ("root2", scalar(std::f32::consts::SQRT_2)),
            ("root_half", scalar(std::f32::consts::FRAC_1_SQRT_2)),
            ("one", scalar(1.0)),
            ("half", scalar(0.5)),
        ];
        let nodes = [head(scale), tail.to_vec()].concat();
        assert_eq!(check(&model(&[3], constants, nodes), &[3]), ["Gelu"]);
    }
}

#[test]
fn what_only_looks_like_gelu_is_left() {
    let constants = vec![("root2", scalar(1.5)), ("one", scalar(1.0)), ("half", scalar(0.5))];
    let nodes = vec![
        Node::new("Div", &["x", "root2"], &["s"]),
        Node::new("Erf", &["s"], &["e"]),
        Node::new("Add", &["e", "one"], &["a"]),
        Node::new("Mul", &["x", "a"], &["m"]),
        Node::new("Mul", &["m", "half"], &["y"]),
    ];
    assert!(check(&model(&[3], constants, nodes), &[3]).contains(&"Erf".to_owned()));
}

fn layer_norm(square: Node) -> Model {
    let constants = vec![
        ("last", Tensor::i64([1], &[-1])),
        ("two", scalar(2.0)),
        ("eps", scalar(1e-5)),
        ("scale", wave(&[4], 1.0)),
        ("bias", wave(&[4], 0.5)),
    ];
    let nodes = vec![
        Node::new("ReduceMean", &["x", "last"], &["mean"]),
        Node::new("Sub", &["x", "mean"], &["c"]),
        square,
        Node::new("ReduceMean", &["sq", "last"], &["var"]),
        Node::new("Add", &["var", "eps"], &["stable"]),
        Node::new("Sqrt", &["stable"], &["std"]),
        Node::new("Div", &["c", "std"], &["n"]),
        Node::new("Mul", &["n", "scale"], &["s"]),
        Node::new("Add", &["bias", "s"], &["y"]),
    ];
    model(&[2, 4], constants, nodes)
}

#[test]
fn layer_norm_is_found() {
    for square in [Node::new("Pow", &["c", "two"], &["sq"]), Node::new("Mul", &["c", "c"], &["sq"])] {
        assert_eq!(check(&layer_norm(square), &[2, 4]), ["LayerNormalization"]);
    }
}

#[test]
fn linear_layers_become_one_product_of_rows() {
    let constants = vec![("w", wave(&[4, 5], 0.5)), ("b", wave(&[5], 0.5))];
    let nodes = vec![Node::new("MatMul", &["x", "w"], &["p"]), Node::new("Add", &["b", "p"], &["y"])];
    let linear = model(&[3, 4], constants, nodes);
    assert_eq!(check(&linear, &[3, 4]), ["Reshape", "Gemm", "Reshape"]);
    assert_eq!(ready(&linear, &[3, 4]).unwrap().parameters.len(), 2);
}

#[test]
fn patches_become_one_product_of_rows() {
    let constants = vec![("w", wave(&[5, 2, 3, 2], 0.5)), ("b", wave(&[5], 0.5))];
    let conv = Node::new("Conv", &["x", "w", "b"], &["y"]).with("strides", vec![3i64, 2]);
    let operators = check(&model(&[2, 6, 4], constants, vec![conv]), &[2, 6, 4]);
    assert!(
        operators.contains(&"Gemm".to_owned()) && !operators.contains(&"Conv".to_owned()),
        "{operators:?}"
    );
}

#[test]
fn overlapping_convolutions_are_left() {
    let conv =
        Node::new("Conv", &["x", "w"], &["y"]).with("strides", vec![2i64, 2]).with("pads", vec![1i64; 4]);
    assert_eq!(
        check(&model(&[2, 6, 6], vec![("w", wave(&[5, 2, 3, 3], 0.5))], vec![conv]), &[2, 6, 6]),
        ["Conv"]
    );
}

#[test]
fn resized_weights_become_products_with_matrices() {
    for mode in ["nearest", "linear", "cubic"] {
        let constants = vec![("grid", wave(&[1, 2, 5, 5], 1.0)), ("sizes", Tensor::i64([4], &[1, 2, 3, 7]))];
        let nodes = vec![
            Node::new("Resize", &["grid", "", "", "sizes"], &["g"]).with("mode", mode),
            Node::new("Add", &["x", "g"], &["y"]),
        ];
        let resized = model(&[2, 3, 7], constants, nodes);
        let operators = check(&resized, &[2, 3, 7]);
        assert_eq!(operators, ["MatMul", "MatMul", "Add"], "{mode}");
        let mut frozen = ready(&resized, &[2, 3, 7]).unwrap();
        frozen.fold_frozen(&Default::default()).unwrap();
        assert_eq!(frozen.graph.nodes.len(), 1, "a frozen grid is resized once, when the graph is built");
    }
}

#[test]
fn shape_arithmetic_disappears() {
    let constants = vec![
        ("zero", Tensor::i64([], &[0])),
        ("axis", Tensor::i64([1], &[0])),
        ("rest", Tensor::i64([2], &[2, -1])),
        ("minus", Tensor::i64([], &[-1])),
        ("token", wave(&[1, 1, 4], 1.0)),
        ("ones", Tensor::i64([2], &[-1, -1])),
    ];
    let nodes = vec![
        Node::new("Shape", &["x"], &["shape"]),
        Node::new("Gather", &["shape", "zero"], &["n"]),
        Node::new("Unsqueeze", &["n", "axis"], &["n1"]),
        Node::new("Concat", &["n1", "rest"], &["target"]).with("axis", 0i64),
        Node::new("Reshape", &["x", "target"], &["r"]),
        // As PyTorch writes `expand(n, -1, -1)`.
        Node::new("Concat", &["n1", "ones"], &["wanted"]).with("axis", 0i64),
        Node::new("Shape", &["wanted"], &["rank"]),
        Node::new("ConstantOfShape", &["rank"], &["filled"]).with("value", Tensor::i64([1], &[1])),
        Node::new("Mul", &["filled", "minus"], &["sentinel"]),
        Node::new("Equal", &["wanted", "sentinel"], &["same"]),
        Node::new("Where", &["same", "filled", "wanted"], &["expanded"]),
        Node::new("Expand", &["token", "expanded"], &["t"]),
        Node::new("Concat", &["t", "r"], &["y"]).with("axis", 1i64),
    ];
    let operators = check(&model(&[8], constants, nodes), &[8]);
    assert_eq!(operators.iter().filter(|op| *op == "Shape").count(), 1, "{operators:?}");
    for gone in ["Gather", "Unsqueeze", "ConstantOfShape", "Equal", "Where", "Mul"] {
        assert!(!operators.iter().any(|op| op == gone), "{operators:?}");
    }
}

#[test]
fn attention_is_scaled_once() {
    let constants = vec![("a", scalar(0.5)), ("b", scalar(0.25))];
    let nodes = vec![
        Node::new("Transpose", &["x"], &["t"]).with("perm", vec![0i64, 2, 1]),
        Node::new("Mul", &["x", "a"], &["left"]),
        Node::new("Mul", &["t", "b"], &["right"]),
        Node::new("MatMul", &["left", "right"], &["y"]),
    ];
    let operators = check(&model(&[3, 4], constants, nodes), &[3, 4]);
    assert_eq!(operators.iter().filter(|op| *op == "Mul").count(), 1);
}

#[test]
fn anonymous_weights_are_named_after_their_place() {
    let constants = vec![("onnx::MatMul_7", wave(&[4, 5], 0.5))];
    let node = Node::new("MatMul", &["x", "onnx::MatMul_7"], &["y"]).named("/encoder/layer.0/key/MatMul");
    let prepared = ready(&model(&[4], constants, vec![node]), &[4]).unwrap();
    assert!(prepared.parameters.contains("encoder.layer.0.key.weight"), "{:?}", prepared.parameters);
}

#[test]
fn anonymous_weights_of_nameless_nodes_are_named_after_their_bias() {
    let constants = vec![("val_3", wave(&[4, 5], 0.5)), ("layer.0.key.bias", wave(&[5], 0.5))];
    let nodes = vec![
        Node::new("MatMul", &["x", "val_3"], &["p"]).named("node_MatMul_3"),
        Node::new("Add", &["p", "layer.0.key.bias"], &["y"]),
    ];
    let prepared = ready(&model(&[4], constants, nodes), &[4]).unwrap();
    assert!(prepared.parameters.contains("layer.0.key.weight"), "{:?}", prepared.parameters);
}

#[test]
fn a_builder_names_nothing_as_a_node_to_come_is_named() {
    let nodes = vec![Node::new("Relu", &["x"], &["made.Neg.1"]), Node::new("Neg", &["made.Neg.1"], &["y"])];
    let graph = model(&[4], vec![], nodes).graph;
    let rewritten = Builder::rewrite(&graph, "made.", |builder, _, mut node| {
        node.inputs[0] = builder.op("Neg", &[&node.inputs[0]])?;
        builder.push(node)
    });
    let outputs: Vec<_> = rewritten.unwrap().nodes.into_iter().map(|node| node.outputs[0].clone()).collect();
    assert_eq!(outputs, ["made.Neg.2", "made.Neg.1", "made.Neg.3", "y"]);
}

#[test]
fn what_cannot_be_prepared_is_named() {
    let odd = Node::new("NonZero", &["x"], &["y"]).named("culprit");
    let error = ready(&model(&[4], vec![], vec![odd]), &[4]).unwrap_err().to_string();
    assert!(error.contains("culprit") && error.contains("NonZero"), "{error}");
    let foreign = Node { domain: "com.example".into(), ..Node::new("Magic", &["x"], &["y"]) };
    let error = ready(&model(&[4], vec![], vec![foreign]), &[4]).unwrap_err().to_string();
    assert!(error.contains("com.example"), "{error}");
    let fits = model(&[4], vec![], vec![Node::new("Exp", &["x"], &["y"])]);
    let error = ready(&fits, &[4, 4]).unwrap_err().to_string();
    assert!(error.contains("rank"), "{error}");
    let mut old = fits;
    old.opset = 9;
    let error = ready(&old, &[4]).unwrap_err().to_string();
    assert!(error.contains("opset 9"), "{error}");
}

#[test]
fn a_hostile_constant_is_not_computed() {
    // 2^14 x 2^14 times itself would take minutes.
    let constants = vec![("shape", Tensor::i64([2], &[1 << 14, 1 << 14]))];
    let nodes = vec![
        Node::new("ConstantOfShape", &["shape"], &["big"]),
        Node::new("MatMul", &["big", "big"], &["product"]),
        Node::new("ReduceSum", &["product"], &["sum"]).with("keepdims", 0i64),
        Node::new("Add", &["x", "sum"], &["y"]),
    ];
    let prepared = ready(&model(&[4], constants, nodes), &[4]).unwrap();
    assert!(prepared.graph.initializers.values().all(|tensor| tensor.len() <= 1 << 22));
}
