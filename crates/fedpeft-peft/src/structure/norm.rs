//! Scales and biases of normalisations.

use std::collections::BTreeSet;

use fedpeft_onnx::{Graph, Node};

use super::walk::Walk;

/// Parameters of `LayerNormalization`, and scales of normalisations written in pieces (RMSNorm).
pub(super) fn parameters(graph: &Graph, parameters: &BTreeSet<String>) -> BTreeSet<String> {
    let walk = Walk::new(graph, &[]);
    let mut found = BTreeSet::new();
    for node in &graph.nodes {
        match node.op.as_str() {
            "LayerNormalization" => found.extend(node.inputs.iter().skip(1).cloned()),
            "Mul" => found.extend(rms_scale(&walk, node)),
            _ => {}
        }
    }
    found.retain(|name| parameters.contains(name));
    found
}

/// The flat factor of a `Mul` whose other factor is a value divided by the root of its mean square.
fn rms_scale<'a>(walk: &Walk<'a>, node: &'a Node) -> Option<String> {
    let flat = |name: &&String| {
        walk.graph.initializers.get(*name).is_some_and(|t| t.shape.len() == 1 && t.len() > 1)
    };
    let scale = node.inputs.iter().find(flat)?;
    let mut normal = node.inputs.iter().find(|input| *input != scale)?.as_str();
    while let Some((_, cast)) = walk.producer(normal).filter(|(_, node)| node.is("Cast")) {
        normal = cast.input(0)?;
    }
    let (_, division) = walk.producer(normal).filter(|(_, node)| node.is("Mul") || node.is("Div"))?;
    let divides = division.inputs.iter().any(|input| is_root_of_mean(walk, input));
    divides.then(|| scale.clone())
}

/// Whether `value` is `sqrt(mean(..) + epsilon)` or its inverse.
fn is_root_of_mean<'a>(walk: &Walk<'a>, mut value: &'a str) -> bool {
    let mut rooted = false;
    while let Some((_, node)) = walk.producer(value) {
        if node.is("ReduceMean") {
            return rooted;
        }
        rooted |= node.is("Sqrt") || node.is("Pow");
        let passes = ["Sqrt", "Pow", "Reciprocal", "Div", "Add", "Cast"].iter().any(|op| node.is(op));
        let computed = node.inputs.iter().find(|input| !walk.is_constant(input));
        match computed.filter(|_| passes) {
            Some(input) => value = input,
            None => return false,
        }
    }
    false
}
