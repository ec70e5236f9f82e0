//! The gradient of every example of a batch, and the sum of these clipped to a length: what DP-SGD needs (Abadi et
//! al., arXiv 1607.00133), in one graph and one pass.
//!
//! The gradient that an example gives a trained tensor is the gradient with respect to the example's own copy of it.
//! So [`copies`] rewrites the forward graph: wherever a trained tensor meets values of the batch, in `y = f(x, W)`, it
//! adds `y' = f(x, W')` with copies `W' [N, ..shape]`, of which example `n` reads the `n`-th alone. As all copies are
//! equal, `y'` is `y`; a node `Shadow(y, y')` is worth `y` and hands its gradient to both. [`differentiate`] then does what
//! it always does, with respect to `W'`. Nothing needs the value of `y'` but its derivative, so that all of the forward
//! graph stays as it is, and what is left of the copies are products and sums of the backward pass that keep the
//! examples apart. There is no second table of gradient rules to get wrong: only the few operators that read trained
//! tensors have to be written with copies.
//!
//! [`clip`] scales and sums the copies' gradients. Where a gradient is a product that takes more memory than its factors,
//! as those of large weights do, it is never made: its length follows from the factors (Goodfellow, arXiv 1510.01799; Li et
//! al., arXiv 2110.05679), and the sum is one product of scaled factors (Bu et al., arXiv 2210.00038).

mod clip;
mod copies;
mod frame;
mod shadows;
mod shared;

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_onnx::{Graph, Node};
use fedpeft_passes::Builder;

use crate::{AutodiffError, differentiate};

pub use clip::Clipped;

/// The gradients of `losses`, one for each example, `[N]`, with respect to each example's own copy of each of
/// `tensors`, appended to `graph`: values of shape `[N, ..shape of the tensor]`.
///
/// # Errors
/// [`AutodiffError`] naming the node at which the examples cannot be kept apart, and as in [`differentiate`].
pub fn per_example(
    graph: &Graph,
    losses: &str,
    tensors: &BTreeSet<String>,
) -> Result<(Builder, BTreeMap<String, String>), AutodiffError> {
    let (mut b, copies) = copies::spread(graph, losses, tensors)?;
    let total = b.add(Node::new("ReduceSum", &[losses], &[]).with("keepdims", 0i64))?;
    let gradients = differentiate(&mut b, &total, &copies.values().cloned().collect())?;
    let each = copies.into_iter().filter_map(|(tensor, copy)| Some((tensor, gradients.get(&copy)?.clone())));
    let each: BTreeMap<String, String> = each.collect();
    let (graph, renamed) = copies::gather(b.finish());
    let each = each.into_iter().map(|(tensor, value)| (tensor, renamed(&value))).collect();
    Ok((Builder::new(graph, "clip.")?, each))
}

/// The sum over the batch of every example's gradient of its loss (`losses`, `[N]`) with respect to all of `tensors`
/// together, each scaled down to the Euclidean norm `limit`, a scalar, where it is longer.
///
/// # Errors
/// [`AutodiffError`] as in [`per_example`], or where the gradients of one example take too much memory.
pub fn clipped_gradients(
    graph: &Graph,
    losses: &str,
    limit: &str,
    tensors: &BTreeSet<String>,
) -> Result<(Builder, Clipped), AutodiffError> {
    let (mut b, each) = per_example(graph, losses, tensors)?;
    let clipped = clip::clip(&mut b, &each, limit)?;
    Ok((b, clipped))
}
