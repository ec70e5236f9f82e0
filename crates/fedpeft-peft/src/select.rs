//! Which tensors of a prepared backbone a method that adds none trains.

use std::collections::BTreeSet;

use fedpeft_onnx::{Graph, Node};
use fedpeft_passes::Prepared;

use crate::{Method, PeftError, structure::Structure};

/// Names of the backbone's tensors that `method` trains; empty for [`Method::Head`] and for methods that add
/// their own.
pub(crate) fn select(method: &Method, backbone: &Prepared) -> Result<BTreeSet<String>, PeftError> {
    let (found, kind) = match method {
        Method::Bias => (biases(&backbone.graph, &backbone.parameters), "biases"),
        Method::LayerNorm => (Structure::of(backbone)?.norms, "normalisations"),
        Method::Full => (backbone.parameters.clone(), "parameters"),
        _ => return Ok(BTreeSet::new()),
    };
    if found.is_empty() { Err(PeftError::Nothing { method: method.name(), kind }) } else { Ok(found) }
}

/// Biases by structure: what a linear layer, a convolution or a normalisation adds as its third input, and
/// any flat parameter that an `Add` broadcasts over the last axis.
fn biases(graph: &Graph, parameters: &BTreeSet<String>) -> BTreeSet<String> {
    let flat = |name: &str| graph.initializers.get(name).is_some_and(|tensor| tensor.shape.len() == 1);
    let third = |node: &Node| node.input(2).map(str::to_owned);
    let candidates = graph.nodes.iter().flat_map(|node| match node.op.as_str() {
        _ if !node.domain.is_empty() => Vec::new(),
        "Gemm" | "Conv" | "LayerNormalization" => third(node).into_iter().collect(),
        "Add" => node.inputs.iter().filter(|name| flat(name)).cloned().collect(),
        _ => Vec::new(),
    });
    candidates.filter(|name| parameters.contains(name)).collect()
}
