//! Every rule against central finite differences in f64, on random shapes and with broadcasting.
//!
//! Each case builds a small graph around one operator, contracts its output with random weights to a scalar,
//! differentiates, and evaluates both the graph and its gradient with the reference evaluator, which shares
//! no code with the rules.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::collections::{BTreeSet, HashMap};

use fedpeft_autodiff::{AutodiffError, differentiate, functions};
use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{DType, Graph, Model, Node, Tensor};
use fedpeft_passes::{Builder, Extent, Type};
use proptest::prelude::*;

/// A source of smooth test values, different for every index.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as f64 / f64::from(1u32 << 31)) * 2.0 - 1.0
    }

    /// Values in `low..high`.
    fn tensor(&mut self, shape: &[usize], low: f64, high: f64) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f32> =
            (0..count).map(|_| (low + (self.next() + 1.0) / 2.0 * (high - low)) as f32).collect();
        Tensor::f32(shape, &values)
    }
}

/// One case: tensors to differentiate by, constants, and the graph from them to an output.
struct Case<'a> {
    trained: Vec<(&'a str, Tensor)>,
    constants: Vec<(&'a str, Tensor)>,
    build: Box<dyn Fn(&mut Builder) -> String + 'a>,
}

impl<'a> Case<'a> {
    fn new(trained: Vec<(&'a str, Tensor)>, node: Node) -> Self {
        Self { trained, constants: vec![], build: Box::new(move |b| b.add(node.clone()).unwrap()) }
    }

    fn with(mut self, name: &'a str, tensor: Tensor) -> Self {
        self.constants.push((name, tensor));
        self
    }

    /// Compares every entry of every gradient with a central difference.
    fn check(self) {
        let mut b = Builder::new(Graph::default(), "t.").unwrap();
        // The loss of a batch needs an input with a batch; one that nothing else uses.
        b.input("batch", Type::new(DType::F32, vec![Extent::N]));
        for (name, tensor) in self.trained.iter().chain(&self.constants) {
            b.initializer(name, tensor.clone());
        }
        let y = (self.build)(&mut b);
        let shape = b.ty(&y).unwrap().known_shape().unwrap();
        let weights = Numbers(7).tensor(&shape, 0.2, 1.0);
        let weights = b.constant(weights);
        let product = b.op("Mul", &[&y, &weights]).unwrap();
        let loss = b.add(Node::new("ReduceSum", &[&product], &[]).with("keepdims", 0i64)).unwrap();
        b.output(&loss, "loss").unwrap();
        let names: BTreeSet<String> = self.trained.iter().map(|(name, _)| (*name).to_owned()).collect();
        let gradients = differentiate(&mut b, &loss, &names).unwrap();
        for (name, gradient) in &gradients {
            let (got, wanted) = (b.ty(gradient).unwrap().clone(), b.ty(name).unwrap().clone());
            assert_eq!(got, wanted, "type of the gradient of {name}");
            b.output(gradient, &format!("{name}.grad")).unwrap();
        }
        let mut model = Model::new(b.finish());
        functions::attach(&mut model);
        let interpreter = Interpreter::new(&model).unwrap();
        let inputs = |replaced: Option<(&str, Value)>| {
            let mut inputs = HashMap::from([(
                "batch".to_owned(),
                Value::from_tensor(&Tensor::f32([2], &[0.0; 2])).unwrap(),
            )]);
            inputs.extend(replaced.map(|(name, value)| (name.to_owned(), value)));
            inputs
        };
        let exact = interpreter.run(&inputs(None)).unwrap();
        for (name, tensor) in &self.trained {
            let gradient = exact[&format!("{name}.grad")].as_float().unwrap().clone();
            let centre = Value::from_tensor(tensor).unwrap();
            for (i, got) in gradient.iter().enumerate() {
                let at = |step: f64| {
                    let mut moved = centre.as_float().unwrap().clone();
                    *moved.iter_mut().nth(i).unwrap() += step;
                    let outputs = interpreter.run(&inputs(Some((name, Value::Float(moved))))).unwrap();
                    *outputs["loss"].as_float().unwrap().iter().next().unwrap()
                };
                let h = 1e-5;
                let wanted = (at(h) - at(-h)) / (2.0 * h);
                // f32 constants in the rules (such as 1/sqrt(2)) are exact to 6e-8 only.
                let close = (got - wanted).abs() <= 2e-6 * (1.0 + wanted.abs());
                assert!(close, "d loss / d {name}[{i}]: rule {got}, finite difference {wanted}");
            }
        }
    }
}

/// A shape and one that broadcasts to it: leading dimensions dropped, some set to 1.
fn broadcastable() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    (proptest::collection::vec(1usize..4, 1..4), any::<u8>()).prop_map(|(shape, mask)| {
        let dropped = usize::from(mask) % (shape.len() + 1);
        let kept = shape.iter().enumerate().skip(dropped);
        let other = kept.map(|(i, size)| if mask >> (4 + i) & 1 == 1 { 1 } else { *size }).collect();
        (shape, other)
    })
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1usize..4, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn elementwise_binary((a, b) in broadcastable(), op in prop::sample::select(vec!["Add", "Sub", "Mul", "Div"]), swap: bool, seed: u64) {
        let mut n = Numbers(seed);
        let tensors = vec![("a", n.tensor(&a, 0.5, 2.0)), ("b", n.tensor(&b, 0.5, 2.0))];
        let node = if swap { Node::new(op, &["b", "a"], &[]) } else { Node::new(op, &["a", "b"], &[]) };
        Case::new(tensors, node).check();
    }

    #[test]
    fn sums_of_many((a, b) in broadcastable(), seed: u64) {
        let mut n = Numbers(seed);
        let tensors = vec![("a", n.tensor(&a, -1.0, 1.0)), ("b", n.tensor(&b, -1.0, 1.0))];
        Case::new(tensors, Node::new("Sum", &["a", "b", "a"], &[])).check();
    }

    #[test]
    fn elementwise_unary(shape in shape(), seed: u64, op in prop::sample::select(vec![
        "Abs", "Erf", "Exp", "Gelu", "Identity", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Tanh",
    ])) {
        let mut n = Numbers(seed);
        let positive = matches!(op, "Log" | "Sqrt" | "Reciprocal");
        let mut x = n.tensor(&shape, if positive { 0.3 } else { -3.0 }, 3.0);
        if matches!(op, "Abs" | "Relu") {
            // Keep clear of the kink, where a central difference is no derivative.
            let clear: Vec<f32> = x.as_f32().unwrap().iter().map(|v| if v.abs() < 0.01 { 0.5 } else { *v }).collect();
            x = Tensor::f32(shape.clone(), &clear);
        }
        Case::new(vec![("x", x)], Node::new(op, &["x"], &[])).check();
    }

    #[test]
    fn gelu_by_tanh(shape in shape(), seed: u64) {
        let x = Numbers(seed).tensor(&shape, -3.0, 3.0);
        Case::new(vec![("x", x)], Node::new("Gelu", &["x"], &[]).with("approximate", "tanh")).check();
    }

    #[test]
    fn powers((a, b) in broadcastable(), seed: u64) {
        let mut n = Numbers(seed);
        let exponent = n.tensor(&b, 1.0, 3.0);
        Case::new(vec![("x", n.tensor(&a, 0.5, 2.0))], Node::new("Pow", &["x", "e"], &[])).with("e", exponent).check();
    }

    #[test]
    fn choices((a, b) in broadcastable(), seed: u64) {
        let mut n = Numbers(seed);
        let count = a.iter().product::<usize>();
        let condition = Tensor::bool(a.clone(), &(0..count).map(|_| n.next() > 0.0).collect::<Vec<_>>());
        let tensors = vec![("a", n.tensor(&a, -1.0, 1.0)), ("b", n.tensor(&b, -1.0, 1.0))];
        Case::new(tensors, Node::new("Where", &["c", "a", "b"], &[])).with("c", condition).check();
    }

    #[test]
    fn gemm(m in 1usize..4, k in 1usize..4, n in 1usize..4, ta: bool, tb: bool, bias in 0usize..4, seed: u64) {
        let mut numbers = Numbers(seed);
        let a = numbers.tensor(&if ta { [k, m] } else { [m, k] }, -1.0, 1.0);
        let b = numbers.tensor(&if tb { [n, k] } else { [k, n] }, -1.0, 1.0);
        let mut tensors = vec![("a", a), ("b", b)];
        let mut inputs = vec!["a", "b"];
        let shapes: [&[usize]; 3] = [&[n], &[1, n], &[m, n]];
        if let Some(shape) = shapes.get(bias) {
            tensors.push(("c", numbers.tensor(shape, -1.0, 1.0)));
            inputs.push("c");
        }
        let node = Node::new("Gemm", &inputs, &[]).with("transA", i64::from(ta)).with("transB", i64::from(tb));
        Case::new(tensors, node).check();
    }

    #[test]
    fn batched_products((lead_a, lead_b) in broadcastable(), m in 1usize..4, k in 1usize..4, n in 1usize..4, seed: u64) {
        let mut numbers = Numbers(seed);
        let a = numbers.tensor(&[&lead_a[..], &[m, k]].concat(), -1.0, 1.0);
        let b = numbers.tensor(&[&lead_b[..], &[k, n]].concat(), -1.0, 1.0);
        Case::new(vec![("a", a), ("b", b)], Node::new("MatMul", &["a", "b"], &[])).check();
    }

    #[test]
    fn convolutions(
        batch in 1usize..3, channels in 1usize..3, filters in 1usize..3,
        kernel in (1usize..3, 1usize..3), extra in (0usize..4, 0usize..4),
        stride in 1i64..3, dilation in 1i64..3, pad in 0i64..2, seed: u64,
    ) {
        let mut n = Numbers(seed);
        let reach = |k: usize| (k - 1) * dilation as usize + 1;
        let x = n.tensor(&[batch, channels, reach(kernel.0) + extra.0, reach(kernel.1) + extra.1], -1.0, 1.0);
        let w = n.tensor(&[filters, channels, kernel.0, kernel.1], -1.0, 1.0);
        let b = n.tensor(&[filters], -1.0, 1.0);
        let node = Node::new("Conv", &["x", "w", "b"], &[])
            .with("strides", vec![stride; 2]).with("dilations", vec![dilation; 2]).with("pads", vec![pad; 4]);
        Case::new(vec![("x", x), ("w", w), ("b", b)], node).check();
    }

    #[test]
    fn layer_norm(lead in shape(), width in 2usize..6, seed: u64) {
        let mut n = Numbers(seed);
        let x = n.tensor(&[&lead[..], &[width]].concat(), -1.0, 1.0);
        let tensors = vec![("x", x), ("scale", n.tensor(&[width], 0.5, 1.5)), ("bias", n.tensor(&[width], -1.0, 1.0))];
        let node = Node::new("LayerNormalization", &["x", "scale", "bias"], &[]).with("axis", -1i64).with("epsilon", 1e-2f32);
        Case::new(tensors, node).check();
    }

    #[test]
    fn softmax(shape in shape(), axis in 0usize..3, log: bool, seed: u64) {
        let axis = axis % shape.len();
        let x = Numbers(seed).tensor(&shape, -2.0, 2.0);
        let op = if log { "LogSoftmax" } else { "Softmax" };
        Case::new(vec![("x", x)], Node::new(op, &["x"], &[]).with("axis", axis as i64)).check();
    }

    #[test]
    fn cross_entropy(
        classes in 2usize..5,
        // The last row is scored whatever the others are.
        labels in proptest::collection::vec((0i64..2, any::<bool>()), 0..4),
        weighted: bool, ignoring: bool, seed: u64,
    ) {
        let mut n = Numbers(seed);
        let ignored = -100;
        let mut labels: Vec<i64> =
            labels.into_iter().map(|(label, skip)| if skip && ignoring { ignored } else { label }).collect();
        labels.push(1);
        let x = n.tensor(&[labels.len(), classes], -2.0, 2.0);
        let inputs: &[&str] = if weighted { &["x", "labels", "w"] } else { &["x", "labels"] };
        let mut node = Node::new("SoftmaxCrossEntropyLoss", inputs, &[]).with("reduction", "mean");
        if ignoring {
            node = node.with("ignore_index", ignored);
        }
        let labels = Tensor::i64([labels.len()], &labels);
        Case::new(vec![("x", x)], node).with("labels", labels).with("w", n.tensor(&[classes], 0.5, 2.0)).check();
    }

    #[test]
    fn reductions(shape in shape(), mask in 0usize..8, keep: bool, mean: bool, seed: u64) {
        let axes: Vec<i64> = (0..shape.len()).filter(|i| mask >> i & 1 == 1).map(|i| if mask % 3 == 0 { i as i64 - shape.len() as i64 } else { i as i64 }).collect();
        let x = Numbers(seed).tensor(&shape, -1.0, 1.0);
        let op = if mean { "ReduceMean" } else { "ReduceSum" };
        let inputs: &[&str] = if axes.is_empty() { &["x"] } else { &["x", "axes"] };
        let node = Node::new(op, inputs, &[]).with("keepdims", i64::from(keep));
        Case::new(vec![("x", x)], node).with("axes", Tensor::i64([axes.len()], &axes)).check();
    }

    #[test]
    fn transposes(shape in shape(), rotate in 0usize..3, given: bool, seed: u64) {
        let rank = shape.len();
        let perm: Vec<i64> = (0..rank).map(|i| ((i + rotate) % rank) as i64).collect();
        let x = Numbers(seed).tensor(&shape, -1.0, 1.0);
        let node = Node::new("Transpose", &["x"], &[]);
        Case::new(vec![("x", x)], if given { node.with("perm", perm) } else { node }).check();
    }

    #[test]
    fn reshapes(shape in shape(), seed: u64, op in prop::sample::select(vec!["Reshape", "Flatten", "Unsqueeze", "Squeeze"])) {
        let shape = if op == "Squeeze" { [&shape[..], &[1]].concat() } else { shape };
        let x = Numbers(seed).tensor(&shape, -1.0, 1.0);
        let (node, ints) = match op {
            "Reshape" => (Node::new(op, &["x", "i"], &[]), vec![-1]),
            "Flatten" => (Node::new(op, &["x"], &[]), vec![0]),
            "Unsqueeze" => (Node::new(op, &["x", "i"], &[]), vec![0]),
            _ => (Node::new(op, &["x", "i"], &[]), vec![shape.len() as i64 - 1]),
        };
        Case::new(vec![("x", x)], node).with("i", Tensor::i64([1], &ints)).check();
    }

    #[test]
    fn expansions((shape, from) in broadcastable(), seed: u64) {
        let target: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        let x = Numbers(seed).tensor(&from, -1.0, 1.0);
        Case::new(vec![("x", x)], Node::new("Expand", &["x", "s"], &[])).with("s", Tensor::i64([target.len()], &target)).check();
    }

    #[test]
    fn concatenations(shape in shape(), axis in 0usize..3, second in 1usize..4, one_trained: bool, seed: u64) {
        let axis = axis % shape.len();
        let mut n = Numbers(seed);
        let mut other = shape.clone();
        other[axis] = second;
        let (a, b) = (n.tensor(&shape, -1.0, 1.0), n.tensor(&other, -1.0, 1.0));
        let node = Node::new("Concat", &["a", "b"], &[]).with("axis", axis as i64);
        if one_trained {
            Case::new(vec![("b", b)], node).with("a", a).check();
        } else {
            Case::new(vec![("a", a), ("b", b)], node).check();
        }
    }

    #[test]
    fn slices(sizes in (3usize..6, 3usize..6), start in -3i64..3, end in prop::sample::select(vec![-1i64, 3, i64::MAX]), axis in -2i64..2, seed: u64) {
        let x = Numbers(seed).tensor(&[sizes.0, sizes.1], -1.0, 1.0);
        let size = if axis.rem_euclid(2) == 0 { sizes.0 } else { sizes.1 } as i64;
        let at = |i: i64| if i < 0 { i + size } else { i.min(size) };
        prop_assume!(at(start) < at(end));
        Case::new(vec![("x", x)], Node::new("Slice", &["x", "s", "e", "a"], &[]))
            .with("s", Tensor::i64([1], &[start])).with("e", Tensor::i64([1], &[end])).with("a", Tensor::i64([1], &[axis])).check();
    }

    #[test]
    fn pads(shape in shape(), before in 0i64..3, after in 0i64..3, seed: u64) {
        let rank = shape.len();
        let mut pads = vec![0; 2 * rank];
        (pads[0], pads[2 * rank - 1]) = (before, after);
        let x = Numbers(seed).tensor(&shape, -1.0, 1.0);
        Case::new(vec![("x", x)], Node::new("Pad", &["x", "p"], &[])).with("p", Tensor::i64([2 * rank], &pads)).check();
    }

    #[test]
    fn single_rows(shape in shape(), axis in 0usize..3, last: bool, scalar: bool, seed: u64) {
        let axis = axis % shape.len();
        let index = if last { -1 } else { 0 };
        let x = Numbers(seed).tensor(&shape, -1.0, 1.0);
        let index = if scalar { Tensor::i64([], &[index]) } else { Tensor::i64([1], &[index]) };
        Case::new(vec![("x", x)], Node::new("Gather", &["x", "i"], &[]).with("axis", axis as i64)).with("i", index).check();
    }

    #[test]
    fn embeddings(rows in 2usize..5, width in 1usize..4, indices in proptest::collection::vec(0i64..2, 4), seed: u64) {
        let x = Numbers(seed).tensor(&[rows, width], -1.0, 1.0);
        Case::new(vec![("x", x)], Node::new("Gather", &["x", "i"], &[])).with("i", Tensor::i64([2, 2], &indices)).check();
    }

    #[test]
    fn splits(lead in 1usize..3, sizes in (1i64..3, 1i64..3), seed: u64, both: bool) {
        let x = Numbers(seed).tensor(&[lead, (sizes.0 + sizes.1) as usize], -1.0, 1.0);
        let case = Case {
            trained: vec![("x", x)],
            constants: vec![("sizes", Tensor::i64([2], &[sizes.0, sizes.1]))],
            build: Box::new(move |b| {
                b.push(Node::new("Split", &["x", "sizes"], &["left", "right"]).with("axis", -1i64)).unwrap();
                let square = b.op("Mul", &["right", "right"]).unwrap();
                if both {
                    b.add(Node::new("Concat", &[&square, "left"], &[]).with("axis", -1i64)).unwrap()
                } else {
                    square
                }
            }),
        };
        case.check();
    }
}

#[test]
fn a_value_used_twice_gets_both_gradients() {
    let case = Case {
        trained: vec![("x", Numbers(1).tensor(&[3], 0.5, 1.5))],
        constants: vec![],
        build: Box::new(|b| {
            let square = b.op("Mul", &["x", "x"]).unwrap();
            let exp = b.op("Exp", &["x"]).unwrap();
            b.op("Div", &[&exp, &square]).unwrap()
        }),
    };
    case.check();
}

#[test]
fn every_rule_is_tested_here() {
    let source = include_str!("finite_differences.rs");
    let table = include_str!("../src/rules/mod.rs");
    let rules = table.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next());
    let (mut count, exempt) = (0, ["Cast"]);
    for op in rules {
        assert!(
            exempt.contains(&op) || source.contains(&format!("\"{op}\"")),
            "no finite-difference test for {op}"
        );
        count += 1;
    }
    assert!(count >= 35, "the table was not read: {count} rules");
}

fn scalar_graph(op: &str) -> Result<(), AutodiffError> {
    let mut b = Builder::new(Graph::default(), "t.").unwrap();
    b.initializer("x", Tensor::f32([2], &[1.0, 2.0]));
    let y = b.add(Node::new(op, &["x"], &[]).named("culprit")).unwrap();
    let loss = b.add(Node::new("ReduceSum", &[&y], &[]).with("keepdims", 0i64)).unwrap();
    differentiate(&mut b, &loss, &BTreeSet::from(["x".to_owned()])).map(drop)
}

#[test]
fn an_operator_without_a_rule_names_the_node() {
    let error = scalar_graph("Floor").unwrap_err();
    assert!(matches!(&error, AutodiffError::NoRule { op, .. } if op == "Floor"));
    assert!(error.to_string().contains("culprit"), "{error}");
}

#[test]
fn a_tensor_off_the_path_is_named() {
    let mut b = Builder::new(Graph::default(), "t.").unwrap();
    b.initializer("x", Tensor::f32([2], &[1.0, 2.0]));
    b.initializer("elsewhere", Tensor::f32([2], &[1.0, 2.0]));
    let loss = b.add(Node::new("ReduceSum", &["x"], &[]).with("keepdims", 0i64)).unwrap();
    let error = differentiate(&mut b, &loss, &BTreeSet::from(["elsewhere".to_owned()])).unwrap_err();
    assert!(matches!(error, AutodiffError::NoPath(name) if name == "elsewhere"));
}
