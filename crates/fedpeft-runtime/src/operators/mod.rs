//! The kernels as ONNX Runtime operators of domain [`DOMAIN`].
//!
//! Training graphs call these operators as model-local functions whose bodies are standard operators, so
//! that they run anywhere. On the processor the bodies are taken away before a session is made
//! ([`take_over`]) and the nodes run the fused kernels instead.

mod attention;
mod dropout;
mod gelu_grad;
mod layer_norm_grad;
mod layer_norm_scale_grad;
mod reduce_rows;
mod softmax_grad;
mod split;
#[cfg(test)]
mod tests;
mod transposed;

use fedpeft_onnx::Model;
use ort::operator::OperatorDomain;

/// Domain of the operators.
pub const DOMAIN: &str = "fedpeft";
/// Version of the domain.
pub(crate) const VERSION: i64 = 1;

pub(crate) use attention::SCALE;

/// Operators that [`domain`] implements in the place of functions.
const NAMES: [&str; 5] = ["Dropout", "GeluGrad", "LayerNormGrad", "SoftmaxGrad", "ReduceRows"];

/// Removes the bodies of all functions that have a kernel; returns whether there were any.
pub(crate) fn take_over(model: &mut Model) -> bool {
    let before = model.functions.len();
    model.functions.retain(|function| function.domain != DOMAIN || !NAMES.contains(&function.name.as_str()));
    model.functions.len() < before
}

/// The operators, to be registered with a session.
pub(crate) fn domain() -> ort::Result<OperatorDomain> {
    OperatorDomain::new(DOMAIN)?
        .add(attention::Attention)?
        .add(attention::AttentionGrad)?
        .add(dropout::Dropout)?
        .add(gelu_grad::GeluGrad)?
        .add(layer_norm_grad::LayerNormGrad)?
        .add(layer_norm_scale_grad::LayerNormScaleGrad)?
        .add(transposed::Transposed)?
        .add(softmax_grad::SoftmaxGrad)?
        .add(reduce_rows::ReduceRows)
}
