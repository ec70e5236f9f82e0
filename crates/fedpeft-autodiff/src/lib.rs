//! Reverse-mode differentiation of ONNX graphs into ONNX graphs.
//!
//! [`differentiate`] appends to a graph the nodes that compute the gradient of one scalar, the loss, with
//! respect to chosen initializers or inputs, and no others: only values that lie on a path from a chosen
//! tensor to the loss get a gradient. So frozen weights cost no weight gradient, and whatever precedes the
//! first trainable tensor costs no gradient at all.
//!
//! The gradient of each operator is one rule in [`rules`]; an operator without a rule on the path is an error
//! that names the node. Where a gradient is worth one fused kernel, the rule emits an operator of the domain
//! `fedpeft` ([`functions`]): a model-local function whose body is standard operators, so that any runtime
//! computes it, and one that has a kernel for it computes it fast.
//!
//! [`per_example`] differentiates with respect to every example's own copy of a tensor, and [`clipped_gradients`]
//! sums such gradients after clipping each, which is the half of DP-SGD that belongs into a graph.

mod examples;
pub mod functions;
mod reverse;
mod rules;

pub use examples::{Clipped, clipped_gradients, per_example};
pub use reverse::{AutodiffError, differentiate};
