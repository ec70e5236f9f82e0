//! Selections of rows move towards the inputs, as far as they compute the same.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::collections::HashMap;

use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{DType, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_passes::{Builder, Extent, infer_graph, sink};

/// Tokens, features and heads.
const SIZES: [i64; 3] = [5, 6, 2];
const BATCH: [usize; 2] = [1, 3];

fn wave(shape: &[usize]) -> Tensor {
    let values: Vec<f32> =
        (0..shape.iter().product::<usize>()).map(|i| (i as f32 * 0.73 + 0.2).sin()).collect();
    Tensor::f32(shape, &values)
}

/// A graph from `x [N, T, C]` to what `build` makes of it, its outputs.
fn graph(build: impl Fn(&mut Builder) -> Vec<String>) -> Graph {
    let dims = vec![Dim::Symbol("N".into()), Dim::Fixed(5), Dim::Fixed(6)];
    let inputs = vec![ValueInfo::new("x", DType::F32, dims)];
    let initializers = [
        ("w", &[6, 6][..]),
        ("bias", &[6]),
        ("scale", &[6]),
        ("positions", &[1, 5, 6]),
        ("each", &[5, 1]),
        ("one", &[1, 1, 6]),
    ];
    let initializers = initializers.map(|(name, shape)| (name.to_owned(), wave(shape))).into();
    let mut b = Builder::new(Graph { inputs, initializers, ..Graph::default() }, "t.").unwrap();
    for (i, value) in build(&mut b).iter().enumerate() {
        b.output(value, &format!("y{i}")).unwrap();
    }
    b.finish()
}

fn run(graph: &Graph, batch: usize) -> HashMap<String, Value> {
    let x = Value::from_tensor(&wave(&[batch, 5, 6])).unwrap();
    let outputs =
        Interpreter::new(&Model::new(graph.clone())).unwrap().run(&HashMap::from([("x".to_owned(), x)]));
    outputs.unwrap().into_iter().collect()
}

/// The graph afterwards, which computes the same.
fn sunk(before: &Graph) -> Graph {
    let after = sink(before).unwrap();
    for batch in BATCH {
        let (wanted, got) = (run(before, batch), run(&after, batch));
        for (name, wanted) in &wanted {
            let (wanted, got) = (wanted.as_float().unwrap(), got[name].as_float().unwrap());
            assert_eq!(wanted.shape(), got.shape(), "{name}");
            assert!(wanted.iter().zip(got).all(|(a, b)| (a - b).abs() < 1e-12), "{name}");
        }
    }
    after
}

/// The operators of a graph that read all tokens, or make all of them.
fn whole(graph: &Graph) -> Vec<&str> {
    let types = infer_graph(graph).unwrap();
    let has = |name: &String| {
        let shape = types.get(name).map(|ty| ty.shape.clone()).unwrap_or_default();
        shape.contains(&Extent::fixed(5)) || shape.contains(&Extent { factor: 5, batch: true })
    };
    let nodes = graph.nodes.iter().filter(|node| node.inputs.iter().chain(&node.outputs).any(has));
    nodes.map(|node| node.op.as_str()).collect()
}

fn token(b: &mut Builder, value: &str, index: i64) -> String {
    let index = b.constant(Tensor::i64([], &[index]));
    b.add(Node::new("Gather", &[value, &index], &[]).with("axis", 1i64)).unwrap()
}

/// A linear layer as `prepare` writes it.
fn linear(b: &mut Builder, x: &str) -> String {
    let shape = b.ty(x).unwrap().shape.clone();
    let rows = b.rows(x).unwrap();
    let y = b.op("Gemm", &[&rows, "w", "bias"]).unwrap();
    b.reshape(&y, &shape).unwrap()
}

fn attention(b: &mut Builder, x: &str) -> String {
    let [tokens, features, heads] = SIZES.map(Extent::fixed);
    let split = [Extent::N, tokens, heads, features.divided_by(heads).unwrap()];
    let swap = |b: &mut Builder, value: &str, perm: [i64; 4]| {
        b.add(Node::new("Transpose", &[value], &[]).with("perm", perm.to_vec())).unwrap()
    };
    let part = |b: &mut Builder, perm| {
        let value = linear(b, x);
        let value = b.reshape(&value, &split).unwrap();
        swap(b, &value, perm)
    };
    let (q, k, v) = (part(b, [0, 2, 1, 3]), part(b, [0, 2, 3, 1]), part(b, [0, 2, 1, 3]));
    let scores = b.op("MatMul", &[&q, &k]).unwrap();
    let scale = b.scalar(0.5);
    let scores = b.op("Mul", &[&scores, &scale]).unwrap();
    let shares = b.add(Node::new("Softmax", &[&scores], &[]).with("axis", -1i64)).unwrap();
    let mixed = b.op("MatMul", &[&shares, &v]).unwrap();
    let mixed = swap(b, &mixed, [0, 2, 1, 3]);
    let mixed = b.reshape(&mixed, &[Extent::N, tokens, features]).unwrap();
    linear(b, &mixed)
}

fn norm(b: &mut Builder, x: &str) -> String {
    b.add(Node::new("LayerNormalization", &[x, "scale", "bias"], &[]).with("axis", -1i64)).unwrap()
}

/// A block with its residual sums and layer scales.
fn block(b: &mut Builder, x: &str) -> String {
    let inner = norm(b, x);
    let inner = attention(b, &inner);
    let inner = b.op("Mul", &[&inner, "scale"]).unwrap();
    let x = b.op("Add", &[&inner, x]).unwrap();
    let inner = norm(b, &x);
    let inner = linear(b, &inner);
    let inner = b.op("Gelu", &[&inner]).unwrap();
    let inner = linear(b, &inner);
    b.op("Add", &[&x, &inner]).unwrap()
}

#[test]
fn of_a_last_block_only_keys_and_values_are_whole() {
    let before = graph(|b| {
        let y = block(b, "x");
        let y = norm(b, &y);
        vec![token(b, &y, 0)]
    });
    let after = sunk(&before);
    // The residual's token and the queries'; keys, values, and their products.
    let wanted = [
        "LayerNormalization",
        "Gather",
        "Reshape",
        "Gemm",
        "Reshape",
        "Reshape",
        "Transpose",
        "Reshape",
        "Gemm",
        "Reshape",
        "Reshape",
        "Transpose",
        "MatMul",
        "Mul",
        "Softmax",
        "MatMul",
        "Gather",
    ];
    assert_eq!(whole(&after), wanted);
    assert_eq!(before.nodes.iter().filter(|node| node.is("Gemm")).count(), 6);
    assert_eq!(after.nodes.iter().filter(|node| node.is("Gemm")).count(), 6);
    assert_eq!(sink(&after).unwrap(), after, "twice is once");
    let two = graph(|b| {
        let y = block(b, "x");
        let y = block(b, &y);
        vec![token(b, &y, -1)]
    });
    let gelus = |graph: &Graph| whole(graph).into_iter().filter(|op| *op == "Gelu").count();
    assert_eq!((gelus(&two), gelus(&sunk(&two))), (2, 1));
}

#[test]
fn what_is_wanted_whole_stays() {
    for build in [
        |b: &mut Builder| {
            let y = linear(b, "x");
            vec![token(b, &y, 0), token(b, &y, 1)]
        },
        |b: &mut Builder| {
            let y = linear(b, "x");
            let axes = b.ints(&[1]);
            let mean = b.add(Node::new("ReduceMean", &[&y, &axes], &[]).with("keepdims", 0i64)).unwrap();
            vec![token(b, &y, 0), mean]
        },
        // Its outputs are the graph's.
        |b: &mut Builder| {
            let y = linear(b, "x");
            vec![token(b, &y, 0), y]
        },
        // These mix tokens.
        |b: &mut Builder| {
            let y = b.add(Node::new("Softmax", &["x"], &[]).with("axis", 1i64)).unwrap();
            vec![token(b, &y, 0)]
        },
        |b: &mut Builder| {
            let turned = b.add(Node::new("Transpose", &["x"], &[]).with("perm", vec![0i64, 2, 1])).unwrap();
            let all = b.reshape(&turned, &[Extent::N, Extent::fixed(5), Extent::fixed(6)]).unwrap();
            vec![token(b, &all, 0)]
        },
        |b: &mut Builder| {
            let rows = b.rows("x").unwrap();
            let squares = b.add(Node::new("Gemm", &[&rows, &rows], &[]).with("transA", 1i64)).unwrap();
            let y = b.op("MatMul", &["x", &squares]).unwrap();
            let sum = b.op("Add", &["x", &y]).unwrap();
            vec![token(b, "x", 0), sum]
        },
    ] {
        let before = graph(build);
        assert_eq!(sunk(&before), before);
    }
    let none = graph(|b| vec![block(b, "x")]);
    assert_eq!(sunk(&none), none);
}

#[test]
fn operands_give_the_row_that_belongs_to_it() {
    let before = graph(|b| {
        let y = b.op("Add", &["x", "positions"]).unwrap();
        let y = b.op("Mul", &[&y, "each"]).unwrap();
        let y = b.op("Add", &["one", &y]).unwrap();
        let y = b.op("Mul", &[&y, &y]).unwrap();
        let y = b.op("MatMul", &[&y, "w"]).unwrap();
        vec![token(b, &y, 3)]
    });
    let after = sunk(&before);
    assert_eq!(whole(&after), ["Gather"; 3]);
}

#[test]
fn sums_of_rows_and_tokens_that_were_cut_off() {
    let before = graph(|b| {
        let rows = b.rows("x").unwrap();
        let inner = b.op("Gemm", &[&rows, "w"]).unwrap();
        let sum = b.op("Gemm", &[&inner, "w", &rows]).unwrap();
        let sum = b.op("Add", &[&sum, &inner]).unwrap();
        let y = b.reshape(&sum, &[Extent::N, Extent::fixed(5), Extent::fixed(6)]).unwrap();
        let (starts, ends, axes) = (b.ints(&[-3]), b.ints(&[i64::MAX]), b.ints(&[1]));
        let y = b.op("Slice", &[&y, &starts, &ends, &axes]).unwrap();
        vec![token(b, &y, 1)]
    });
    assert_eq!(whole(&sunk(&before)), ["Gather"]);
}

#[test]
fn a_row_that_many_read_is_taken_once() {
    let before = graph(|b| {
        let rows = b.rows("x").unwrap();
        let mean = b.add(Node::new("ReduceMean", &[&rows], &[])).unwrap();
        let (left, right) = (b.op("Gemm", &[&rows, "w"]).unwrap(), b.op("Gemm", &[&rows, "w"]).unwrap());
        let y = b.op("Mul", &[&left, &right]).unwrap();
        let y = b.reshape(&y, &[Extent::N, Extent::fixed(5), Extent::fixed(6)]).unwrap();
        vec![token(b, &y, 2), mean]
    });
    let after = sunk(&before);
    assert_eq!(after.nodes.iter().filter(|node| node.is("Gather")).count(), 1);
    let gemms: Vec<&Node> = after.nodes.iter().filter(|node| node.is("Gemm")).collect();
    assert_eq!(gemms[0].inputs, gemms[1].inputs);
}
