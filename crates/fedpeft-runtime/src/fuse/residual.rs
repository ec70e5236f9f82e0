//! The gradient of a normalisation and that of what goes around it, added as the first is computed.

use std::collections::HashMap;

use fedpeft_onnx::Graph;

use super::replace;
use crate::operators::DOMAIN;

/// Inputs of `LayerNormGrad`, without what is added.
const INPUTS: usize = 5;

pub(super) fn fuse(graph: &mut Graph) -> bool {
    let (readers, producers) = (graph.consumers(), graph.producers());
    let mut taken: HashMap<usize, fedpeft_onnx::Node> = HashMap::new();
    for sum in graph.nodes.iter().filter(|node| node.is("Sum") && node.inputs.len() == 2) {
        for (value, other) in [(0, 1), (1, 0)].map(|(a, b)| (&sum.inputs[a], &sum.inputs[b])) {
            let Some(&at) = producers.get(value.as_str()) else { continue };
            let node = &graph.nodes[at];
            let alone = readers.get(value.as_str()).is_some_and(|readers| readers.len() == 1)
                && graph.outputs.iter().all(|output| output.name != *value);
            let is_gradient = node.op == "LayerNormGrad" && node.domain == DOMAIN;
            if is_gradient && node.inputs.len() == INPUTS && alone {
                let mut node = node.clone();
                node.inputs.push(other.clone());
                node.outputs.clone_from(&sum.outputs);
                taken.insert(at, node);
                break;
            }
        }
    }
    let (fused, nodes) = (!taken.is_empty(), taken.into_values().collect());
    replace(graph, nodes);
    fused
}
