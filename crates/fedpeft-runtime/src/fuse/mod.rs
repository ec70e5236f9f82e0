//! Parts of graphs that one operator of ours computes, for the processor: what they hand on to each other as standard
//! operators, or in passes of their own, takes longer than what they compute.
//!
//! Each is recognised by how it is written, and left as it is where it is written otherwise.

mod attention;
mod normalized;
mod residual;
mod transposed;

use fedpeft_onnx::{Graph, Model, Node, OnnxError, surgery};

use crate::operators::{DOMAIN, VERSION};

/// Puts operators of ours in the place of what they compute; returns whether there was any.
pub(crate) fn fuse(model: &mut Model) -> Result<bool, OnnxError> {
    let graph = &mut model.graph;
    let mut fused = attention::fuse(graph);
    fused |= residual::fuse(graph);
    fused |= normalized::fuse(graph);
    fused |= transposed::fuse(graph);
    if fused {
        model.domains.entry(DOMAIN.to_owned()).or_insert(VERSION);
        surgery::prune(graph)?;
    }
    Ok(fused)
}

/// A node of our domain.
fn ours(op: &str, inputs: &[&str], outputs: &[&str]) -> Node {
    Node { domain: DOMAIN.into(), ..Node::new(op, inputs, outputs) }
}

/// Puts nodes in the place of those that give the same values. What only these read is of no use any more.
fn replace(graph: &mut Graph, nodes: Vec<Node>) {
    for output in nodes.iter().flat_map(|node| &node.outputs) {
        let outputs = graph.nodes.iter_mut().flat_map(|node| &mut node.outputs);
        outputs.filter(|name| *name == output).for_each(String::clear);
    }
    graph.nodes.retain(|node| node.outputs.iter().any(|name| !name.is_empty()));
    graph.nodes.extend(nodes);
}
