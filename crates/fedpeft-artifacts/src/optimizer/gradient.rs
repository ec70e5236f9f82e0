//! What happens to the gradient before the optimizer makes a step of it, as part of the optimizer's graph:
//!
//! | transformation | value after it | inputs |
//! | --- | --- | --- |
//! | accumulation over micro-batches | `(accumulated + gradient_weight g) gradient_scale` | `accumulated`, zero at first |
//! | proximal term (FedProx, arXiv 1812.06127) | `g + proximal_mu (p - anchor)` | `anchor`, the adapter at the start |
//! | clipping by global norm (`clip_grad_norm_`) | `g min(1, clip_norm / (norm(g) + 1e-6))` | |
//!
//! Weight 1, scale 1, `proximal_mu` 0 and an infinite `clip_norm` leave the gradient as it is, but not for
//! nothing: [`keep`] takes out of a graph what a run has no use for.

use fedpeft_onnx::{Graph, Model, Node, OnnxError, surgery};
use fedpeft_passes::PassError;

use super::Step;
use crate::manifest::GRADIENT_SUFFIX;

/// Sum of the weighted gradients of the micro-batches before this one, one flat vector.
pub const ACCUMULATED: &str = "accumulated";
/// Weight of this micro-batch.
pub const WEIGHT: &str = "gradient_weight";
/// Reciprocal of the sum of the weights.
pub const SCALE: &str = "gradient_scale";
/// The adapter that the proximal term pulls towards, one flat vector.
pub const ANCHOR: &str = "anchor";
/// Strength of the proximal term.
pub const PROXIMAL_MU: &str = "proximal_mu";
/// Most that the norm of the gradient may be.
pub const CLIP_NORM: &str = "clip_norm";

/// Inputs that are one flat vector.
pub(super) const VECTORS: [&str; 2] = [ACCUMULATED, ANCHOR];
/// Inputs that are scalars.
pub(super) const CONSTANTS: [&str; 4] = [WEIGHT, SCALE, PROXIMAL_MU, CLIP_NORM];

/// The output of [`accumulation`], and the values after each transformation.
pub const SUM: &str = "gradient.sum";
const JOINED: &str = "gradient.joined";
const MEAN: &str = "gradient.mean";
const PROXIMAL: &str = "gradient.proximal";
const CLIPPED: &str = "gradient.clipped";

/// Keeps the quotient finite where the gradient is zero, as PyTorch does.
const CLIP_EPSILON: f32 = 1e-6;

/// Appends all transformations and returns the gradient of the adapter `p` after them.
pub(super) fn transform(s: &mut Step, p: &str) -> Result<String, PassError> {
    s.flat(GRADIENT_SUFFIX, JOINED)?;
    let weighted = s.op("Mul", &[JOINED, WEIGHT])?;
    s.named("Add", &[ACCUMULATED, &weighted], SUM)?;
    s.named("Mul", &[SUM, SCALE], MEAN)?;

    let way = s.op("Sub", &[p, ANCHOR])?;
    let pull = s.op("Mul", &[&way, PROXIMAL_MU])?;
    s.named("Add", &[MEAN, &pull], PROXIMAL)?;

    let squares = s.b.add(Node::new("ReduceSumSquare", &[PROXIMAL], &[]).with("keepdims", 0i64))?;
    let norm = s.op("Sqrt", &[&squares])?;
    let (epsilon, one) = (s.b.scalar(CLIP_EPSILON), s.b.scalar(1.0));
    let norm = s.op("Add", &[&norm, &epsilon])?;
    let factor = s.op("Div", &[CLIP_NORM, &norm])?;
    let factor = s.op("Min", &[&factor, &one])?;
    s.named("Mul", &[PROXIMAL, &factor], CLIPPED)?;
    Ok(CLIPPED.to_owned())
}

/// Transformations that a run uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transforms {
    /// Accumulation over micro-batches.
    pub accumulate: bool,
    /// The proximal term.
    pub proximal: bool,
    /// Clipping.
    pub clip: bool,
}

/// Takes all other transformations out of an optimizer's graph, with their inputs.
///
/// # Errors
/// [`OnnxError`], where the graph has none to take out or to keep.
pub fn keep(model: &mut Model, transforms: Transforms) -> Result<(), OnnxError> {
    let graph = &mut model.graph;
    expect(graph, CLIPPED)?;
    let Transforms { accumulate, proximal, clip } = transforms;
    let mut last = JOINED;
    for (used, value) in [(accumulate, MEAN), (proximal, PROXIMAL), (clip, CLIPPED)] {
        if used {
            last = value;
        } else {
            surgery::redirect(graph, value, last);
        }
    }
    surgery::prune(graph)
}

/// Cuts an optimizer's graph down to one that only accumulates: (gradients, [`ACCUMULATED`], [`WEIGHT`]) ->
/// [`SUM`].
///
/// # Errors
/// [`OnnxError`], where the graph does not accumulate.
pub fn accumulation(model: &mut Model) -> Result<(), OnnxError> {
    expect(&model.graph, SUM)?;
    surgery::cut(&mut model.graph, SUM)
}

fn expect(graph: &Graph, value: &str) -> Result<(), OnnxError> {
    if graph.producers().contains_key(value) {
        return Ok(());
    }
    Err(OnnxError::Graph(format!("no node computes {value:?}: build the artifacts again")))
}
