//! Linear layers.

use std::collections::{BTreeSet, HashMap};

use fedpeft_onnx::Graph;
use fedpeft_passes::Types;

use super::Linear;

/// Every `Gemm` whose second factor is a parameter, perhaps in another shape.
pub(super) fn find(graph: &Graph, parameters: &BTreeSet<String>, types: &Types) -> Vec<Linear> {
    let producers = graph.producers();
    let mut linears = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        if !node.is("Gemm") || node.int("transA").unwrap_or(0) != 0 {
            continue;
        }
        let (Some(x), Some(factor)) = (node.input(0), node.input(1)) else { continue };
        let Some(weight) = behind(graph, &producers, factor).filter(|name| parameters.contains(*name)) else {
            continue;
        };
        let known = |name: &str| types.get(name).and_then(fedpeft_passes::Type::last);
        let (Some(inputs), Some(outputs)) = (known(x), known(&node.outputs[0])) else { continue };
        linears.push(Linear {
            node: index,
            path: format!("linear.{}", linears.len()),
            weight: weight.to_owned(),
            transposed: node.int("transB").unwrap_or(0) != 0,
            inputs: inputs.max(0) as usize,
            outputs: outputs.max(0) as usize,
            direct: weight == factor,
        });
    }
    linears
}

/// The initializer that `value` is, or is another shape of.
fn behind<'a>(graph: &'a Graph, producers: &HashMap<&str, usize>, mut value: &'a str) -> Option<&'a str> {
    while let Some(index) = producers.get(value) {
        let node = &graph.nodes[*index];
        let moves = ["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"].iter().any(|op| node.is(op));
        value = node.input(0).filter(|_| moves)?;
    }
    graph.initializers.contains_key(value).then_some(value)
}
