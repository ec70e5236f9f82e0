//! The order in which ONNX Runtime computes gradients.
//!
//! It sorts the nodes of a graph anew: from the last node that nothing reads back to what that one needs, then the one
//! before it, and so on. In the order in which the sweep from the loss writes gradients, the last is that of the first
//! layer, for which the whole sweep is made while every other gradient waits, with the activations and gradients of
//! activations that it reads. With the nodes that nothing reads at the end and the last first, each gradient is computed
//! as soon as it can be, and what it alone needed is free then.

use std::collections::{HashMap, HashSet};

use fedpeft_onnx::{Graph, Node};

/// Moves the nodes that nothing reads to the end, in reverse.
pub(crate) fn last_first(graph: &mut Graph) {
    name_as_outputs(graph);
    let read: HashSet<&str> = graph.nodes.iter().flat_map(|node| &node.inputs).map(String::as_str).collect();
    let is_read: Vec<bool> =
        graph.nodes.iter().map(|node| node.outputs.iter().any(|name| read.contains(name.as_str()))).collect();
    let (inner, mut leaves): (Vec<_>, Vec<_>) =
        std::mem::take(&mut graph.nodes).into_iter().zip(is_read).partition(|(_, is_read)| *is_read);
    leaves.reverse();
    graph.nodes = inner.into_iter().chain(leaves).map(|(node, _)| node).collect();
}

/// Gives values their names as outputs of the graph, where a node of its own did. ONNX Runtime does so as well, after
/// it has numbered the nodes.
fn name_as_outputs(graph: &mut Graph) {
    let outputs: HashSet<String> = graph.outputs.iter().map(|output| output.name.clone()).collect();
    let made: HashSet<String> = graph.nodes.iter().flat_map(|node| node.outputs.clone()).collect();
    let mut names: HashMap<String, String> = HashMap::new();
    graph.nodes.retain(|node| match (node.is("Identity"), node.inputs.as_slice(), node.outputs.as_slice()) {
        (true, [value], [output])
            if outputs.contains(output)
                && !outputs.contains(value)
                && made.contains(value)
                && !names.contains_key(value) =>
        {
            names.insert(value.clone(), output.clone());
            false
        }
        _ => true,
    });
    let rename = |node: &mut Node| {
        for value in node.inputs.iter_mut().chain(&mut node.outputs) {
            if let Some(name) = names.get(value) {
                value.clone_from(name);
            }
        }
    };
    graph.nodes.iter_mut().for_each(rename);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_reads_comes_last_and_the_last_of_it_first() {
        let nodes = vec![
            Node::new("Exp", &["x"], &["a"]),
            Node::new("Neg", &["a"], &["first"]),
            Node::new("Exp", &["a"], &["b"]),
            Node::new("Neg", &["b"], &["second"]),
            Node::new("Exp", &["b"], &["c"]),
            Node::new("Identity", &["b"], &["b.grad"]),
            Node::new("Identity", &["c"], &["c.grad"]),
            Node::new("Identity", &["x"], &["x.grad"]),
        ];
        let mut graph = Graph { nodes, ..Graph::default() };
        for name in ["first", "second", "b.grad", "c.grad", "x.grad"] {
            let (dtype, shape) = (fedpeft_onnx::DType::F32, None);
            graph.outputs.push(fedpeft_onnx::ValueInfo { name: name.into(), dtype, shape });
        }
        last_first(&mut graph);
        let order: Vec<String> =
            graph.nodes.iter().map(|node| format!("{} {}", node.inputs[0], node.outputs[0])).collect();
        assert_eq!(
            order,
            ["x a", "a b.grad", "x x.grad", "b.grad c.grad", "b.grad second", "a first"].map(String::from)
        );
    }
}
