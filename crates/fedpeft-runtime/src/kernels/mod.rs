//! Fused kernels for the processor, usable without ONNX Runtime.
//!
//! As standard operators, one gradient of one GELU is eleven passes over memory and one optimizer step a
//! dozen; each kernel here is one. They are plain loops over slices, compiled once per vector extension and
//! dispatched at run time ([`pulp::Arch`]). Every kernel works on any part of its tensor, so callers may
//! split rows among threads. Reductions add in an order given by the shape alone, in [`LANES`] lanes, and
//! every multiply-add is written as one, so that results do not depend on threads or on the vector width.

mod adamw;
mod attention;
mod dropout;
mod gelu_grad;
mod gradient;
mod layer_norm_grad;
mod math;
mod reduce_rows;
mod sgd;
mod softmax_grad;
mod transpose;

pub use adamw::{AdamwStep, adamw};
pub use attention::{AttentionScratch, AttentionShape, attention, attention_grad};
pub use dropout::{DropoutMask, dropout};
pub use gelu_grad::{gelu_grad, gelu_grad_in_place};
pub use gradient::{Gradient, accumulate, squared_norm};
pub use layer_norm_grad::{Normalized, layer_norm_grad, layer_norm_scale_grad};
pub use reduce_rows::{ROWS_PER_PART, combine_parts, reduce_rows};
pub use sgd::{SgdStep, sgd};
pub use softmax_grad::softmax_grad;
pub use transpose::{TRANSPOSED_ROWS, transpose};

/// Independent partial sums of a reduction: two registers of the widest vectors, which hides the latency of
/// the additions.
const LANES: usize = 32;

/// Adds the lanes in a tree.
#[inline(always)]
fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Runs `kernel` compiled for the best vector extension of this processor. Everything it calls must be
/// `#[inline(always)]`, or it is compiled for the baseline instead.
#[inline(always)]
fn dispatch<R>(kernel: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(kernel)
}
