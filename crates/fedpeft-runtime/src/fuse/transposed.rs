//! Gradients of weights, which are products with a transposed activation: `dW = X^T dY`.
//!
//! ONNX Runtime transposes piece by piece, and again for every 128 columns of the result. Transposed beforehand, once for
//! all products that read it, the activation is read as it lies.

use std::collections::HashMap;

use fedpeft_onnx::Graph;

use super::ours;

pub(super) fn fuse(graph: &mut Graph) -> bool {
    let mut transposed: HashMap<Source, String> = HashMap::new();
    let mut changed = Vec::new();
    let producers = graph.producers();
    for (at, node) in graph.nodes.iter().enumerate() {
        let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
        if node.is("Gemm") && flag("transA") && !flag("transB") {
            let left = &node.inputs[0];
            let source = source(graph, &producers, left);
            changed.push((at, transposed.entry(source).or_insert_with(|| left.clone()).clone()));
        }
    }
    for (at, left) in &changed {
        graph.nodes[*at].inputs[0] = name(left);
        graph.nodes[*at].attributes.remove("transA");
    }
    graph.nodes.extend(transposed.values().map(|value| ours("Transposed", &[value], &[&name(value)])));
    !changed.is_empty()
}

/// What makes a matrix the same as another: each linear layer has a reshaping of its own.
type Source = (String, Option<Vec<i64>>);

fn source(graph: &Graph, producers: &HashMap<&str, usize>, value: &str) -> Source {
    let reshaped = || {
        let node = graph.nodes.get(*producers.get(value)?).filter(|node| node.is("Reshape"))?;
        let shape = graph.initializers.get(node.input(1)?)?.as_i64()?;
        Some((node.input(0)?.to_owned(), Some(shape)))
    };
    reshaped().unwrap_or_else(|| (value.to_owned(), None))
}

fn name(value: &str) -> String {
    format!("{value}.transposed")
}
