//! Nodes from strangers: whatever they say, the evaluator answers and does not panic.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use fedpeft_interp::{Value, eval_node};
use fedpeft_onnx::{Attribute, Node, Tensor};
use ndarray::{ArrayD, IxDyn};
use proptest::prelude::*;

/// Every operator, from the table itself.
fn operators() -> Vec<&'static str> {
    let table = include_str!("../src/ops/mod.rs");
    table.lines().filter_map(|line| Some(line.trim().strip_prefix('"')?.split_once("\" =>")?.0)).collect()
}

/// Numbers that are small, or so large that nothing of that size may be allocated.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![6 => -3i64..5, 1 => Just(i64::MIN), 1 => Just(i64::MAX), 1 => Just(1i64 << 40)]
}

fn value() -> impl Strategy<Value = Value> {
    let shape = prop::collection::vec(0usize..4, 0..5);
    (shape, prop::collection::vec(number(), 256), 0..8).prop_map(|(shape, numbers, kind)| {
        let len = shape.iter().product();
        let numbers = numbers[..len].iter().copied();
        let shape = IxDyn(&shape);
        match kind {
            0..4 => Value::Float(
                ArrayD::from_shape_vec(shape, numbers.map(|n| n as f64 / 2.0).collect()).unwrap(),
            ),
            4..7 => Value::Int(ArrayD::from_shape_vec(shape, numbers.collect()).unwrap()),
            _ => Value::Bool(ArrayD::from_shape_vec(shape, numbers.map(|n| n > 0).collect()).unwrap()),
        }
    })
}

fn attribute() -> impl Strategy<Value = (String, Attribute)> {
    let named = |names: &'static [&'static str]| prop::sample::select(names).prop_map(str::to_owned);
    let ints = || prop::collection::vec(number(), 0..5).prop_map(Attribute::Ints);
    prop_oneof![
        4 => (
            named(&[
                "axis", "allowzero", "keepdims", "noop_with_empty_axes", "num_outputs", "batch_dims", "group",
                "transA", "transB", "start", "end", "to", "ignore_index", "upper", "fmod", "exclusive",
                "reverse", "select_last_index",
            ]),
            number().prop_map(Attribute::Int),
        ),
        4 => (
            named(&[
                "perm", "pads", "strides", "dilations", "kernel_shape", "axes", "value_ints", "output_padding",
            ]),
            ints(),
        ),
        1 => (named(&["alpha", "beta", "epsilon", "cubic_coeff_a"]), Just(Attribute::Float(f32::NAN))),
        2 => (named(&["auto_pad"]), named(&["SAME_UPPER", "SAME_LOWER", "VALID"]).prop_map(|t| t.as_str().into())),
        1 => (named(&["mode"]), named(&["constant", "nearest", "linear", "cubic"]).prop_map(|t| t.as_str().into())),
        1 => (named(&["value", "axis"]), Just(Attribute::Tensor(Tensor::scalar(1.0)))),
        1 => (named(&["axis", "alpha", "mode"]), ints()),
    ]
}

/// Attributes alone rarely meet the inputs they are about; these forms get past the first checks.
fn fitting(op: &str, seed: &[i64]) -> Vec<Option<Value>> {
    let size = |i: usize| seed[i].unsigned_abs() as usize % 4;
    let real = |shape: &[usize]| Some(Value::Float(ArrayD::from_elem(IxDyn(shape), 0.5)));
    let list = |values: &[i64]| {
        Some(Value::Int(ArrayD::from_shape_vec(IxDyn(&[values.len()]), values.to_vec()).unwrap()))
    };
    let (a, b, c, d) = (size(0), size(1), size(2), size(3));
    match op {
        "Conv" | "ConvTranspose" => vec![real(&[a, b, c, d]), real(&[size(4), b, size(5), size(6)]), None],
        "MatMul" | "Gemm" => vec![real(&[a, b]), real(&[b, c]), real(&[d])],
        "Resize" => vec![real(&[a, b]), None, None, list(&seed[..2])],
        "Pad" => vec![real(&[a, b]), list(&seed[..4])],
        "Slice" => vec![real(&[a, b]), list(&seed[..2]), list(&seed[2..4]), list(&[0, 1]), list(&seed[4..6])],
        "Range" => seed[..3].iter().map(|n| Some(Value::Int(ArrayD::from_elem(IxDyn(&[]), *n)))).collect(),
        "OneHot" => vec![list(&seed[..3]), list(&seed[3..4]), list(&[0, 1])],
        "ConstantOfShape" => vec![list(&seed[..c])],
        "LayerNormalization" => vec![real(&[a, b, c]), real(&[c])],
        "SoftmaxCrossEntropyLoss" | "NegativeLogLikelihoodLoss" => vec![real(&[2, a]), list(&seed[..2])],
        _ => vec![real(&[a, b, c]), list(&seed[..d]), list(&seed[..d]), list(&seed[..d])],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn nodes_never_panic(
        op in prop::sample::select(operators()),
        attributes in prop::collection::vec(attribute(), 0..4),
        inputs in prop::collection::vec(prop::option::weighted(0.9, value()), 0..5),
    ) {
        let mut node = Node::new(op, &[], &["y"]);
        node.attributes.extend(attributes);
        let inputs: Vec<Option<&Value>> = inputs.iter().map(Option::as_ref).collect();
        let _ = eval_node(&node, &inputs);
    }

    #[test]
    fn plausible_nodes_never_panic(
        op in prop::sample::select(operators()),
        attributes in prop::collection::vec(attribute(), 0..4),
        seed in prop::collection::vec(number(), 8),
    ) {
        let mut node = Node::new(op, &[], &["y"]);
        node.attributes.extend(attributes);
        let inputs = fitting(op, &seed);
        let inputs: Vec<Option<&Value>> = inputs.iter().map(Option::as_ref).collect();
        let _ = eval_node(&node, &inputs);
    }
}

#[test]
fn errors_name_the_node() {
    let node = Node::new("Reshape", &["x", "shape"], &["y"]).named("flatten");
    let error = eval_node(&node, &[]).unwrap_err();
    assert_eq!(error.to_string(), "Reshape \"flatten\": input 0 is missing");
    let error = eval_node(&Node::new("Loop", &[], &["y"]), &[]).unwrap_err();
    assert!(error.is_unsupported());
    assert_eq!(error.to_string(), "Loop \"y\": this operator cannot be evaluated");
}
