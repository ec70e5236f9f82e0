//! Sums in the bodies of our functions as products with ones, for CUDA.
//!
//! CUDA's fast reductions add in whatever order blocks finish, and give other bits in every run. The deterministic ones,
//! which a session asks for, take three times as long as the rest of a step together. A matrix product is both: cuBLAS
//! gives the same bits in every run, and reads its operand once.
//!
//! ```text
//! sum over the last axis     X [.., C] ones [C, 1]
//! sum over the rows          ones [R] X [R, C]
//! ```

use std::collections::BTreeMap;

use fedpeft_onnx::{Attribute, Function, Model, Node, Tensor};

use crate::operators::DOMAIN;

/// Rewrites the sums and means in the bodies of our functions.
pub(crate) fn from_sums(model: &mut Model) {
    for function in model.functions.iter_mut().filter(|function| function.domain == DOMAIN) {
        rewrite(function);
    }
}

fn rewrite(function: &mut Function) {
    let axes: BTreeMap<String, Vec<i64>> = function
        .nodes
        .iter()
        .filter_map(|node| match (node.attributes.get("value"), node.outputs.as_slice()) {
            (Some(Attribute::Tensor(tensor)), [output]) => Some((output.clone(), tensor.as_i64()?)),
            _ => None,
        })
        .collect();
    for node in std::mem::take(&mut function.nodes) {
        let keeps = node.attributes.get("keepdims") != Some(&Attribute::Int(0));
        let rewritten = match (node.inputs.as_slice(), node.outputs.as_slice()) {
            ([x, along], [output]) => match (node.op.as_str(), axes.get(along).map(Vec::as_slice), keeps) {
                ("ReduceSum", Some([-1]), true) => Some(sum_over_last(x, output)),
                ("ReduceMean", Some([-1]), true) => Some(mean_over_last(x, output)),
                // Our functions sum matrices only.
                ("ReduceSum", Some([0]), false) => Some(sum_over_rows(x, output)),
                _ => None,
            },
            _ => None,
        };
        function.nodes.extend(rewritten.unwrap_or_else(|| vec![node]));
    }
}

/// The sum over the last axis, which stays as one of size 1.
fn sum_over_last(x: &str, output: &str) -> Vec<Node> {
    let [width, one, shape, ones] = ["width", "one", "shape", "ones"].map(|part| format!("{output}.{part}"));
    vec![
        Node::new("Shape", &[x], &[&width]).with("start", -1i64),
        Node::new("Constant", &[], &[&one]).with("value", Tensor::i64([1], &[1])),
        Node::new("Concat", &[&width, &one], &[&shape]).with("axis", 0i64),
        filled(&shape, &ones),
        Node::new("MatMul", &[x, &ones], &[output]),
    ]
}

/// The mean over the last axis, which stays as one of size 1.
fn mean_over_last(x: &str, output: &str) -> Vec<Node> {
    let [sum, width, count] = ["sum", "sum.width", "count"].map(|part| format!("{output}.{part}"));
    let mut nodes = sum_over_last(x, &sum);
    nodes.push(Node::new("Cast", &[&width], &[&count]).with("to", 1i64));
    nodes.push(Node::new("Div", &[&sum, &count], &[output]));
    nodes
}

/// The sum over the rows of a matrix, which are gone then.
fn sum_over_rows(x: &str, output: &str) -> Vec<Node> {
    let [rows, ones] = ["rows", "ones"].map(|part| format!("{output}.{part}"));
    vec![
        Node::new("Shape", &[x], &[&rows]).with("start", 0i64).with("end", 1i64),
        filled(&rows, &ones),
        Node::new("MatMul", &[&ones, x], &[output]),
    ]
}

/// Ones of a shape.
fn filled(shape: &str, ones: &str) -> Node {
    Node::new("ConstantOfShape", &[shape], &[ones]).with("value", Tensor::f32([1], &[1.0]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use fedpeft_interp::{Interpreter, Value};
    use fedpeft_onnx::{DType, Dim, Graph, ValueInfo};

    use super::*;
    use crate::{ChosenDevice, session, toy};

    const INPUTS: [(&str, &[usize]); 5] =
        [("a", &[2, 3, 5]), ("b", &[2, 3, 5]), ("scale", &[5]), ("mean", &[2, 3, 1]), ("inv", &[2, 3, 1])];

    /// A model of one node of our domain.
    fn model(op: &str, inputs: &[&str]) -> Model {
        let value = |(name, shape): &(&str, &[usize])| {
            ValueInfo::new(*name, DType::F32, shape.iter().map(|dim| Dim::Fixed(*dim)).collect())
        };
        let mut graph = Graph { name: op.to_owned(), ..Graph::default() };
        graph.inputs = INPUTS.iter().filter(|(name, _)| inputs.contains(name)).map(value).collect();
        graph.outputs.push(ValueInfo { shape: None, ..ValueInfo::new("y", DType::F32, vec![]) });
        graph.nodes.push(Node { domain: DOMAIN.into(), ..Node::new(op, inputs, &["y"]) });
        toy::model(graph)
    }

    #[test]
    fn products_are_the_sums_that_they_replace() {
        let runtime = toy::runtime();
        for (op, inputs) in [
            ("LayerNormGrad", &["a", "b", "scale", "mean", "inv"][..]),
            ("SoftmaxGrad", &["a", "b"]),
            ("ReduceRows", &["a"]),
        ] {
            let before = model(op, inputs);
            let mut after = before.clone();
            from_sums(&mut after);
            let sums = |model: &Model| {
                model.functions[0].nodes.iter().filter(|node| node.op.starts_with("Reduce")).count()
            };
            assert!(sums(&before) > 0 && sums(&after) == 0, "{op}");
            let values: HashMap<String, Value> = INPUTS
                .iter()
                .filter(|(name, _)| inputs.contains(name))
                .map(|(name, shape)| {
                    let count: usize = shape.iter().product();
                    let wave: Vec<f32> =
                        (0..count).map(|i| (i as f32 * 1.3 + name.len() as f32).sin()).collect();
                    ((*name).to_owned(), Value::from_tensor(&Tensor::f32(shape.to_vec(), &wave)).unwrap())
                })
                .collect();
            let [wanted, got] = [&before, &after].map(|model| {
                let outputs = Interpreter::new(model).unwrap().run(&values).unwrap();
                outputs["y"].as_float().unwrap().clone()
            });
            assert_eq!(wanted.shape(), got.shape(), "{op}");
            for (wanted, got) in wanted.iter().zip(&got) {
                assert!((wanted - got).abs() < 1e-12, "{op}: {got} is not {wanted}");
            }
            // ONNX Runtime takes it, with the shapes that it infers.
            let (options, form) =
                (crate::SessionOptions { threads: 1, ..Default::default() }, session::Form::default());
            session::commit(&runtime, &after.to_bytes(), ".", form, ChosenDevice::Cpu, &options).unwrap();
        }
    }
}
