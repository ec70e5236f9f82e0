//! The gradient of every example against central finite differences of its loss in f64, and what clipping leaves of
//! it against a sum made here.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fedpeft_autodiff::{AutodiffError, clipped_gradients, functions, per_example};
use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{DType, Graph, Model, Node, Tensor};
use fedpeft_passes::{Builder, Extent, Type};
use ndarray::{ArrayD, Axis, arr0};

const BATCH: usize = 3;

/// Values between -1 and 1 that differ by `seed`.
fn tensor(shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let value = |i: usize| ((i * 37 + seed * 101) as f32 * 0.73).sin();
    Tensor::f32(shape, &(0..count).map(value).collect::<Vec<_>>())
}

/// A graph from `x [N, ..example]` and tensors to a value of which each example has a part.
struct Case {
    example: Vec<usize>,
    trained: BTreeMap<&'static str, Tensor>,
    build: fn(&mut Builder) -> String,
}

impl Case {
    fn new(
        example: &[usize],
        trained: &[(&'static str, &[usize])],
        build: fn(&mut Builder) -> String,
    ) -> Self {
        let trained =
            trained.iter().enumerate().map(|(i, (name, shape))| (*name, tensor(shape, i))).collect();
        Self { example: example.to_vec(), trained, build }
    }

    fn names(&self) -> BTreeSet<String> {
        self.trained.keys().map(|name| (*name).to_owned()).collect()
    }

    /// The graph up to one loss for each example: its part of the output, weighted at random and summed.
    fn losses(&self) -> (Graph, String) {
        let mut b = Builder::new(Graph::default(), "t.").unwrap();
        let example = self.example.iter().map(|size| Extent::from(*size));
        b.input("x", Type::new(DType::F32, [Extent::N].into_iter().chain(example).collect()));
        b.input("limit", Type::new(DType::F32, Vec::new()));
        for (name, tensor) in &self.trained {
            b.initializer(name, tensor.clone());
        }
        let y = (self.build)(&mut b);
        let shape = b.ty(&y).unwrap().shape.clone();
        assert_eq!(shape[0], Extent::N);
        let size = shape.iter().map(|extent| extent.factor).product();
        let y = b.reshape(&y, &[Extent::N, Extent::fixed(size)]).unwrap();
        let weights = b.constant(tensor(&[size as usize], 99));
        let weighted = b.op("Mul", &[&y, &weights]).unwrap();
        let square = b.op("Mul", &[&weighted, &y]).unwrap();
        let axes = b.ints(&[1]);
        let losses = b.add(Node::new("ReduceSum", &[&square, &axes], &[]).with("keepdims", 0i64)).unwrap();
        b.output(&losses, "losses").unwrap();
        (b.finish(), losses)
    }

    fn inputs(&self) -> HashMap<String, Value> {
        let shape = [&[BATCH], &self.example[..]].concat();
        HashMap::from([
            ("x".to_owned(), Value::from_tensor(&tensor(&shape, 7)).unwrap()),
            ("limit".to_owned(), Value::Float(arr0(1.0).into_dyn())),
        ])
    }

    /// Every example's gradient by tensor, `[N, ..shape]`.
    fn each(&self) -> BTreeMap<String, ArrayD<f64>> {
        let (graph, losses) = self.losses();
        let (mut b, each) = per_example(&graph, &losses, &self.names()).unwrap();
        for (name, gradient) in &each {
            b.output(gradient, &format!("{name}.each")).unwrap();
        }
        let outputs = Interpreter::new(&model(b)).unwrap().run(&self.inputs()).unwrap();
        each.keys()
            .map(|name| (name.clone(), outputs[&format!("{name}.each")].as_float().unwrap().clone()))
            .collect()
    }

    /// Compares every entry of every example's gradient with a central difference of its loss.
    fn check(&self) {
        let each = self.each();
        let (graph, _) = self.losses();
        let mut plain = Model::new(graph);
        functions::attach(&mut plain);
        let interpreter = Interpreter::new(&plain).unwrap();
        for (name, tensor) in &self.trained {
            let centre = Value::from_tensor(tensor).unwrap().as_float().unwrap().clone();
            assert_eq!(each[*name].shape()[1..], *centre.shape(), "{name}");
            for i in 0..centre.len() {
                let losses = |step: f64| {
                    let mut moved = centre.clone();
                    *moved.iter_mut().nth(i).unwrap() += step;
                    let mut inputs = self.inputs();
                    inputs.insert((*name).to_owned(), Value::Float(moved));
                    interpreter.run(&inputs).unwrap()["losses"].as_float().unwrap().clone()
                };
                let h = 1e-5;
                let wanted = (losses(h) - losses(-h)) / (2.0 * h);
                for (n, wanted) in wanted.iter().enumerate() {
                    let got = *each[*name].index_axis(Axis(0), n).iter().nth(i).unwrap();
                    let close = (got - wanted).abs() <= 2e-6 * (1.0 + wanted.abs());
                    assert!(close, "example {n}, {name}[{i}]: {got}, finite difference {wanted}");
                }
            }
        }
    }
}

fn model(b: Builder) -> Model {
    let mut model = Model::new(b.finish());
    functions::attach(&mut model);
    model
}

fn perm(b: &mut Builder, value: &str, perm: &[i64]) -> String {
    b.add(Node::new("Transpose", &[value], &[]).with("perm", perm.to_vec())).unwrap()
}

fn fixed(sizes: &[i64]) -> Vec<Extent> {
    sizes.iter().map(|size| Extent::fixed(*size)).collect()
}

#[test]
fn linear_layers_on_rows() {
    Case::new(&[4, 3], &[("w", &[3, 2]), ("b", &[2]), ("v", &[5, 2])], |b| {
        let rows = b.rows("x").unwrap();
        let y = b.op("Gemm", &[&rows, "w", "b"]).unwrap();
        let y = b.op("Tanh", &[&y]).unwrap();
        let y = b.add(Node::new("Gemm", &[&y, "v"], &[]).with("transB", 1i64).with("alpha", 0.5f32)).unwrap();
        b.reshape(&y, &[&[Extent::N], &fixed(&[4, 5])[..]].concat()).unwrap()
    })
    .check();
}

/// Rows `[T N, C]`, as attention modules that want tokens first are exported; positions in front of the batch.
#[test]
fn tokens_in_front_of_examples() {
    Case::new(&[4, 3], &[("w", &[3, 2]), ("b", &[2]), ("p", &[4, 1, 2]), ("s", &[2]), ("t", &[2])], |b| {
        let tokens = perm(b, "x", &[1, 0, 2]);
        let rows = b.rows(&tokens).unwrap();
        let y = b.op("Gemm", &[&rows, "w", "b"]).unwrap();
        let y = b.op("Tanh", &[&y]).unwrap();
        let y = b
            .add(
                Node::new("LayerNormalization", &[&y, "s", "t"], &[])
                    .with("axis", -1i64)
                    .with("epsilon", 0.1f32),
            )
            .unwrap();
        let n = Extent::N;
        let y = b.reshape(&y, &[Extent::fixed(4), n, Extent::fixed(2)]).unwrap();
        let y = b.op("Add", &[&y, "p"]).unwrap();
        let y = b.op("Sigmoid", &[&y]).unwrap();
        perm(b, &y, &[1, 0, 2])
    })
    .check();
}

#[test]
fn operands_that_broadcast() {
    Case::new(&[2, 3], &[("a", &[3]), ("b", &[2, 1]), ("c", &[1, 2, 3]), ("d", &[1])], |b| {
        let y = b.op("Mul", &["x", "a"]).unwrap();
        let y = b.op("Add", &["b", &y]).unwrap();
        let y = b.op("Sub", &["c", &y]).unwrap();
        let two = b.scalar(2.0);
        let divisor = b.op("Add", &["d", &two]).unwrap();
        b.op("Div", &[&y, &divisor]).unwrap()
    })
    .check();
}

#[test]
fn products_with_matrices_of_many_axes() {
    Case::new(&[2, 4, 3], &[("right", &[2, 3, 2]), ("left", &[5, 4])], |b| {
        let y = b.op("MatMul", &["x", "right"]).unwrap();
        let y = b.op("Tanh", &[&y]).unwrap();
        b.op("MatMul", &["left", &y]).unwrap()
    })
    .check();
}

/// Tokens in front of those of the input, and a module that is used twice.
#[test]
fn prompts_and_shared_modules() {
    Case::new(&[2, 3], &[("prompt", &[2, 3]), ("w", &[3, 3])], |b| {
        let target = b.extents(&[&[Extent::N], &fixed(&[2, 3])[..]].concat()).unwrap();
        let prompt = b.op("Expand", &["prompt", &target]).unwrap();
        let y = b.add(Node::new("Concat", &[&prompt, "x"], &[]).with("axis", 1i64)).unwrap();
        let shape = b.ty(&y).unwrap().shape.clone();
        let rows = b.rows(&y).unwrap();
        let once = b.op("Gemm", &[&rows, "w"]).unwrap();
        let once = b.op("Sigmoid", &[&once]).unwrap();
        let twice = b.op("Gemm", &[&once, "w"]).unwrap();
        b.reshape(&twice, &shape).unwrap()
    })
    .check();
}

#[test]
fn rows_of_a_table() {
    Case::new(&[4], &[("table", &[3, 2]), ("first", &[2])], |b| {
        // 0, 1 or 2 by the value.
        let (zero, small) = (b.scalar(0.0), b.scalar(0.5));
        let mut ids = Vec::new();
        for limit in [&zero, &small] {
            let above = b.op("Greater", &["x", limit]).unwrap();
            ids.push(b.add(Node::new("Cast", &[&above], &[]).with("to", 7i64)).unwrap());
        }
        let ids = b.op("Add", &[&ids[0], &ids[1]]).unwrap();
        let rows = b.op("Gather", &["table", &ids]).unwrap();
        let y = b.op("Mul", &[&rows, "first"]).unwrap();
        b.op("Tanh", &[&y]).unwrap()
    })
    .check();
}

#[test]
fn biases_of_convolutions() {
    Case::new(&[1, 3, 3], &[("bias", &[2])], |b| {
        let kernel = b.constant(tensor(&[2, 1, 2, 2], 3));
        let y = b.op("Conv", &["x", &kernel, "bias"]).unwrap();
        b.op("Tanh", &[&y]).unwrap()
    })
    .check();
}

/// What is made of tensors before they meet the batch.
#[test]
fn tensors_that_are_rearranged_first() {
    Case::new(&[6], &[("a", &[2, 3]), ("c", &[2, 3]), ("m", &[4])], |b| {
        let zeros = b.constant(Tensor::f32([1, 3], &[0.5; 3]));
        let pads = b.ints(&[0, 0, 1, 0]);
        let a = b.op("Pad", &["a", &pads]).unwrap();
        let c = b.add(Node::new("Concat", &["c", &zeros], &[]).with("axis", 0i64)).unwrap();
        let both = b.add(Node::new("Concat", &[&a, &c], &[]).with("axis", 1i64)).unwrap();
        let sum = b.op("Exp", &[&both]).unwrap();
        // Rows 2, 0, 0, then the columns 1 to 4, turned.
        let places = b.ints(&[2, 0, 0, 1]);
        let rows = b.add(Node::new("Gather", &[&sum, &places], &[]).with("axis", 0i64)).unwrap();
        let (start, end, axis) = (b.ints(&[1]), b.ints(&[5]), b.ints(&[-1]));
        let part = b.op("Slice", &[&rows, &start, &end, &axis]).unwrap();
        let turned = perm(b, &part, &[1, 0]);
        let axes = b.ints(&[0]);
        let mean = b.add(Node::new("ReduceMean", &[&turned, &axes], &[]).with("keepdims", 0i64)).unwrap();
        let gain = b.op("Div", &["m", &mean]).unwrap();
        let (left, right) = (b.fresh("left"), b.fresh("right"));
        let sizes = b.ints(&[1, 3]);
        b.push(Node::new("Split", &[&gain, &sizes], &[&left, &right]).with("axis", 0i64)).unwrap();
        let factor = b.op("Mul", &[&left, &right]).unwrap();
        let two = b.reshape("x", &[&[Extent::N], &fixed(&[2, 3])[..]].concat()).unwrap();
        b.op("Mul", &[&two, &factor]).unwrap()
    })
    .check();
}

#[test]
fn what_does_not_reach_the_losses_needs_no_copies() {
    Case::new(&[3], &[("a", &[3, 3]), ("m", &[3])], |b| {
        let product = b.op("Gemm", &["a", "a"]).unwrap();
        let stop = Node { domain: functions::DOMAIN.into(), ..Node::new("StopGradient", &[&product], &[]) };
        let norm = b.add(stop).unwrap();
        let y = b.op("Gemm", &["x", "a"]).unwrap();
        let y = b.op("Mul", &[&y, "m"]).unwrap();
        // As if nothing had been there: what a stop is worth has no derivative, and finite differences see that it has.
        let nothing = b.scalar(0.0);
        let none = b.op("Mul", &[&norm, &nothing]).unwrap();
        let axes = b.ints(&[0]);
        let none = b.add(Node::new("ReduceSum", &[&none, &axes], &[]).with("keepdims", 0i64)).unwrap();
        b.op("Add", &[&y, &none]).unwrap()
    })
    .check();
}

/// Weights so large that their gradients are never made, beside small ones.
#[test]
fn sums_without_gradients_are_the_sums_of_gradients() {
    let case = Case::new(&[3, 256], &[("w", &[256, 256]), ("v", &[256, 256]), ("b", &[256])], |b| {
        let rows = b.rows("x").unwrap();
        let y = b.op("Gemm", &[&rows, "w", "b"]).unwrap();
        let tenth = b.scalar(0.1);
        let y = b.op("Mul", &[&y, &tenth]).unwrap();
        let y = b.op("Tanh", &[&y]).unwrap();
        let y = b.add(Node::new("Gemm", &[&y, "v"], &[]).with("transB", 1i64)).unwrap();
        b.reshape(&y, &[&[Extent::N], &fixed(&[3, 256])[..]].concat()).unwrap()
    });
    let each = case.each();
    let (graph, losses) = case.losses();
    let (mut b, clipped) = clipped_gradients(&graph, &losses, "limit", &case.names()).unwrap();
    for (name, sum) in &clipped.sums {
        b.output(sum, &format!("{name}.sum")).unwrap();
    }
    b.output(&clipped.count, "clipped").unwrap();
    let made = [Extent::N, Extent::fixed(256), Extent::fixed(256)];
    let model = model(b);
    // Of both weights nothing is that large; the copies themselves are not computed.
    let types = fedpeft_passes::infer_graph(&pruned(&model.graph)).unwrap();
    for node in &pruned(&model.graph).nodes {
        for output in node.outputs.iter().filter(|output| !output.is_empty()) {
            assert_ne!(
                types.get(output).unwrap().shape,
                made,
                "{} makes the gradient of each example",
                node.label()
            );
        }
    }
    let interpreter = Interpreter::new(&model).unwrap();
    let norms: Vec<f64> = (0..BATCH)
        .map(|n| {
            let own = each.values().flat_map(|all| all.index_axis(Axis(0), n).to_owned());
            own.map(|value| value * value).sum::<f64>().sqrt()
        })
        .collect();
    let limit = (norms[0] + norms[1]) / 2.0;
    let mut inputs = case.inputs();
    inputs.insert("limit".to_owned(), Value::Float(arr0(limit).into_dyn()));
    let outputs = interpreter.run(&inputs).unwrap();
    for (name, all) in &each {
        let share = |n: usize| (limit / norms[n]).min(1.0);
        let wanted = (0..BATCH).map(|n| all.index_axis(Axis(0), n).to_owned() * share(n));
        let wanted = wanted.reduce(|a, b| a + b).unwrap();
        let found = outputs[&format!("{name}.sum")].as_float().unwrap();
        let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let largest = wanted.iter().map(|value| value.abs()).fold(0.0, f64::max);
        assert!(worst < 1e-9 * largest, "{name}: {worst} of {largest}");
    }
    let long = norms.iter().filter(|norm| **norm > limit).count() as i64;
    assert!(matches!(&outputs["clipped"], Value::Int(count) if count[[]] == long));
}

fn pruned(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    fedpeft_onnx::surgery::prune(&mut graph).unwrap();
    graph
}

fn refused(
    example: &[usize],
    trained: &[(&'static str, &[usize])],
    build: fn(&mut Builder) -> String,
) -> String {
    let case = Case::new(example, trained, build);
    let (graph, losses) = case.losses();
    let error = clipped_gradients(&graph, &losses, "limit", &case.names()).map(drop).unwrap_err();
    assert!(matches!(error, AutodiffError::Unsupported { .. } | AutodiffError::TooLarge { .. }), "{error}");
    error.to_string()
}

#[test]
fn what_mixes_the_examples_is_refused_by_name() {
    let error = refused(&[3], &[("w", &[3, 3])], |b| {
        let y = b.op("Gemm", &["x", "w"]).unwrap();
        let axes = b.ints(&[0]);
        let mean = b.add(Node::new("ReduceMean", &[&y, &axes], &[]).named("batch_norm")).unwrap();
        b.op("Sub", &[&y, &mean]).unwrap()
    });
    assert!(error.contains("batch_norm") && error.contains("mixes the examples"), "{error}");
    let error = refused(&[3], &[("w", &[3, 3])], |b| {
        let y = b.op("Gemm", &["x", "w"]).unwrap();
        b.add(Node::new("Softmax", &[&y], &[]).with("axis", 0i64).named("over_batch")).unwrap()
    });
    assert!(error.contains("over_batch") && error.contains("mixes the examples"), "{error}");
}

#[test]
fn gradients_too_large_for_memory_are_refused_with_the_cure() {
    let error = refused(&[2], &[("table", &[5000, 4000])], |b| {
        let ids = b.add(Node::new("Cast", &["x"], &[]).with("to", 7i64)).unwrap();
        b.op("Gather", &["table", &ids]).unwrap()
    });
    assert!(
        error.contains("\"table\"") && error.contains("76 MiB") && error.contains("choose a method"),
        "{error}"
    );
    let error =
        refused(&[1, 4, 4], &[("kernel", &[1, 1, 2, 2])], |b| b.op("Conv", &["x", "kernel"]).unwrap());
    assert!(error.contains("Conv") && error.contains("choose a method"), "{error}");
}
