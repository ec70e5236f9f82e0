//! Long `Concat`s in parts: where launches are recorded, ONNX Runtime joins no more than 32 tensors at once.

use fedpeft_onnx::{Graph, Node};

/// Most tensors that are joined at once.
const MOST: usize = 32;

/// Rewrites each longer `Concat`.
pub(crate) fn of_concats(graph: &mut Graph) {
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for mut node in std::mem::take(&mut graph.nodes) {
        let mut number = 0;
        while node.is("Concat") && node.inputs.len() > MOST {
            let mut joined = Vec::new();
            for part in node.inputs.chunks(MOST) {
                let name = format!("{}.part{number}", node.output(0).unwrap_or_default());
                number += 1;
                nodes.push(Node { inputs: part.to_vec(), outputs: vec![name.clone()], ..node.clone() });
                joined.push(name);
            }
            node.inputs = joined;
        }
        nodes.push(node);
    }
    graph.nodes = nodes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_to_the_whole_in_its_order() {
        for count in [2, 32, 33, 100, 1100] {
            let inputs: Vec<String> = (0..count).map(|i| i.to_string()).collect();
            let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let mut graph = Graph::default();
            graph.nodes.push(Node::new("Concat", &names, &["all"]).with("axis", 0i64));
            of_concats(&mut graph);
            let mut made: std::collections::BTreeMap<String, Vec<String>> =
                inputs.iter().map(|name| (name.clone(), vec![name.clone()])).collect();
            for node in &graph.nodes {
                assert!(node.inputs.len() <= MOST && node.int("axis") == Some(0));
                let joined = node.inputs.iter().flat_map(|name| made[name].clone()).collect();
                assert!(made.insert(node.outputs[0].clone(), joined).is_none());
            }
            assert_eq!(made["all"], inputs);
        }
    }
}
