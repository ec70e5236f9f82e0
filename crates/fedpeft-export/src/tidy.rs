//! Names that a person can read: every node has one of its own, and values are called after their nodes.

use std::collections::{BTreeSet, HashMap};

use fedpeft_onnx::{Graph, Node, OnnxError, surgery};

/// Names nodes after their operators where they have no name, values after their nodes, and initializers other than
/// `weights` by number. Inputs, outputs and weights keep their names.
pub(crate) fn tidy(graph: &mut Graph, weights: &BTreeSet<String>) -> Result<(), OnnxError> {
    skip_copies(graph);
    surgery::prune(graph)?;
    let mut taken = BTreeSet::new();
    for node in &mut graph.nodes {
        let base = if node.name.is_empty() { &node.op } else { &node.name };
        node.name = unique(base, &mut taken);
    }
    let shown = graph.inputs.iter().chain(&graph.outputs).map(|value| value.name.clone());
    let mut taken: BTreeSet<String> = shown.chain(weights.iter().cloned()).collect();
    let kept = taken.clone();
    let mut names: HashMap<String, String> = HashMap::new();
    for Node { name, outputs, .. } in &graph.nodes {
        for (slot, output) in outputs.iter().enumerate() {
            if !output.is_empty() && !kept.contains(output) {
                names.insert(output.clone(), unique(&format!("{name}_output_{slot}"), &mut taken));
            }
        }
    }
    for name in graph.initializers.keys().filter(|name| !kept.contains(*name)) {
        names.insert(name.clone(), unique("constant", &mut taken));
    }
    for node in &mut graph.nodes {
        for name in node.inputs.iter_mut().chain(&mut node.outputs) {
            if let Some(new) = names.get(name) {
                name.clone_from(new);
            }
        }
    }
    let initializers = std::mem::take(&mut graph.initializers).into_iter();
    let renamed = initializers.map(|(name, tensor)| (names.remove(&name).unwrap_or(name), tensor));
    graph.initializers = renamed.collect();
    Ok(())
}

/// Lets the node that computes a graph output write it, where another hands it on.
fn skip_copies(graph: &mut Graph) {
    let copies = graph.nodes.iter().filter(|node| {
        let shown = graph.outputs.iter().any(|output| node.output(0) == Some(output.name.as_str()));
        let computed = graph.nodes.iter().any(|other| other.outputs.contains(&node.inputs[0]));
        node.is("Identity") && shown && computed
    });
    let copies: Vec<Node> = copies.cloned().collect();
    for Node { inputs, outputs, .. } in copies {
        graph.nodes.retain(|node| node.outputs != outputs);
        for name in graph.nodes.iter_mut().flat_map(|node| node.inputs.iter_mut().chain(&mut node.outputs)) {
            if *name == inputs[0] {
                name.clone_from(&outputs[0]);
            }
        }
    }
}

fn unique(base: &str, taken: &mut BTreeSet<String>) -> String {
    let mut name = base.to_owned();
    let mut number = 1;
    while !taken.insert(name.clone()) {
        number += 1;
        name = format!("{base}_{number}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpeft_onnx::{DType, Dim, Tensor, ValueInfo};

    #[test]
    fn names_are_unique_and_copies_are_gone() {
        let value = |name: &str| ValueInfo::new(name, DType::F32, Dim::fixed(&[2]));
        let mut graph = Graph {
            nodes: vec![
                Node::new("Mul", &["x", "fold.constant.1"], &["peft.Mul.7"]),
                Node::new("Mul", &["peft.Mul.7", "w"], &["peft.Mul.8"]),
                Node::new("Add", &["peft.Mul.8", "peft.Mul.7"], &["y.before"]).named("/head/Add"),
                Node::new("Identity", &["y.before"], &["y"]),
            ],
            inputs: vec![value("x")],
            outputs: vec![value("y")],
            initializers: ["fold.constant.1", "w"]
                .map(|name| (name.to_owned(), Tensor::f32([2], &[1.0, 2.0])))
                .into(),
            ..Graph::default()
        };
        tidy(&mut graph, &["w".to_owned()].into()).unwrap();
        let nodes: Vec<_> =
            graph.nodes.iter().map(|node| (&node.name[..], &node.inputs[..], &node.outputs[0][..])).collect();
        assert_eq!(nodes[0], ("Mul", &["x".to_owned(), "constant".to_owned()][..], "Mul_output_0"));
        assert_eq!(nodes[1].0, "Mul_2");
        assert_eq!((nodes[2].0, nodes[2].2), ("/head/Add", "y"));
        assert_eq!(nodes.len(), 3);
        assert_eq!(graph.initializers.keys().collect::<Vec<_>>(), ["constant", "w"]);
    }
}
