//! Which tensors of a prepared backbone a method trains.

use std::collections::BTreeSet;

use fedpeft_onnx::{Graph, Node};
use fedpeft_passes::Prepared;

use crate::Method;

/// A method that finds nothing to train.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// No tensor of the kind is in the graph.
    #[error("method {method} finds no {kind} in this model: choose another method")]
    Nothing {
        /// The method.
        method: Method,
        /// What it looked for.
        kind: &'static str,
    },
}

/// Names of the backbone's tensors that `method` trains; empty for [`Method::Head`].
pub fn select(method: Method, backbone: &Prepared) -> Result<BTreeSet<String>, SelectError> {
    let (found, kind) = match method {
        Method::Head => return Ok(BTreeSet::new()),
        Method::Bias => (biases(&backbone.graph, &backbone.parameters), "biases"),
        Method::Full => (backbone.parameters.clone(), "parameters"),
    };
    if found.is_empty() { Err(SelectError::Nothing { method, kind }) } else { Ok(found) }
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
