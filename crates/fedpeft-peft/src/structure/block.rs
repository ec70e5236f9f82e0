//! From an attention to the block around it.

use std::collections::HashMap;

use fedpeft_onnx::{Graph, Node};

use super::{
    Attention, Block, Mlp,
    attention::{only, residual},
    walk::{Walk, is_elementwise, is_layout, is_norm},
};

/// Finds the MLP behind `attention`.
pub(super) fn complete(walk: &Walk<'_>, attention: Attention) -> Block {
    let mlp = mlp(walk, &attention);
    Block { attention, mlp }
}

fn mlp(walk: &Walk<'_>, attention: &Attention) -> Option<Mlp> {
    let is_linear = |index: usize, _: &Node| walk.linears.contains_key(&index);
    let sum = walk.graph.nodes[attention.residual.node].output(0)?;
    // A normalisation may lie before it, but no residual addition.
    let before = |node: &Node| {
        is_norm(node) || is_layout(node) || (is_elementwise(node) && !walk.adds_two_values(node))
    };
    let first = walk.forward(sum, before, is_linear);
    let between = |node: &Node| is_elementwise(node) || is_layout(node);
    let inner = |index: &usize| {
        let output = walk.graph.nodes[*index].output(0)?;
        let down = only(walk.forward(output, between, is_linear))?;
        let residual = residual(walk, walk.graph.nodes[down].output(0)?)?;
        Some((down, residual))
    };
    let (mut up, mut end) = (Vec::new(), None);
    for index in &first {
        let (down, residual) = inner(index)?;
        if end.as_ref().is_some_and(|(other, _)| *other != down) {
            return None;
        }
        up.push(*index);
        end = Some((down, residual));
    }
    let (down, residual) = end.filter(|_| up.len() <= 2)?;
    // The gate is the one that the activation reads.
    let activated = |index: &usize| {
        let output = walk.graph.nodes[*index].output(0).unwrap_or_default();
        let activation =
            |_: usize, node: &Node| ["Sigmoid", "Gelu", "Relu", "Erf", "Tanh"].iter().any(|op| node.is(op));
        !walk.forward(output, is_layout, activation).is_empty()
    };
    up.sort_by_key(|index| !activated(index));
    let up = up.iter().map(|index| walk.linears[index]).collect();
    Some(Mlp { up, down: walk.linears[&down], residual })
}

/// Blocks in the order in which they are computed.
pub(super) fn in_order(graph: &Graph, mut blocks: Vec<Block>) -> Vec<Block> {
    // Exporters may write branches in any order; how many attentions precede one does not depend on it.
    let depth = depths(graph);
    blocks.sort_by_key(|block| depth[block.attention.residual.node]);
    blocks
}

/// Longest path from an input to each node.
fn depths(graph: &Graph) -> Vec<usize> {
    let mut by_value: HashMap<&str, usize> = HashMap::new();
    let mut depths = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let depth =
            node.inputs.iter().filter_map(|name| by_value.get(name.as_str())).max().map_or(0, |d| d + 1);
        by_value.extend(node.outputs.iter().map(|name| (name.as_str(), depth)));
        depths.push(depth);
    }
    depths
}
