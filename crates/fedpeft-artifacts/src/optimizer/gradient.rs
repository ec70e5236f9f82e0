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

/// Sum of the weighted gradients of the micro-batches before this one, joined.
pub const ACCUMULATED: &str = "accumulated";
/// Weight of this micro-batch.
pub const WEIGHT: &str = "gradient_weight";
/// Reciprocal of the sum of the weights.
pub const SCALE: &str = "gradient_scale";
/// The adapter that the proximal term pulls towards, joined.
pub const ANCHOR: &str = "anchor";
/// Strength of the proximal term.
pub const PROXIMAL_MU: &str = "proximal_mu";
/// Most that the norm of the gradient may be.
pub const CLIP_NORM: &str = "clip_norm";

/// Inputs that are joined, as [`super::rows`] does it.
pub(super) const JOINED_INPUTS: [&str; 2] = [ACCUMULATED, ANCHOR];
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
    s.join(GRADIENT_SUFFIX, JOINED)?;
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use fedpeft_codec::{Layout, TensorSpec};
    use fedpeft_interp::{Interpreter, Value};
    use fedpeft_onnx::{Dim, Tensor};

    use super::*;
    use crate::optimizer::{adamw, sgd};

    const NOTHING: Transforms = Transforms { accumulate: false, proximal: false, clip: false };

    fn layout() -> Layout {
        let spec = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), shape: shape.into() };
        Layout::new(vec![spec("a", &[2, 3]), spec("b", &[4])]).unwrap()
    }

    fn inputs(model: &Model) -> Vec<&str> {
        model.graph.inputs.iter().map(|input| input.name.as_str()).collect()
    }

    /// Outputs at inputs that are waves, but for the scalars given.
    fn outputs(model: &Model, scalars: &[(&str, f32)]) -> HashMap<String, Value> {
        let mut values = HashMap::new();
        for input in &model.graph.inputs {
            let size = |dim: &Dim| if let Dim::Fixed(size) = dim { *size } else { panic!("{input:?}") };
            let shape: Vec<usize> = input.shape.iter().flatten().map(size).collect();
            let given = scalars.iter().find(|(name, _)| *name == input.name);
            let wave = |i: usize| (i as f32 + input.name.len() as f32).sin() * 0.5;
            let count: usize = shape.iter().product();
            let tensor: Vec<f32> = (0..count).map(|i| given.map_or(wave(i), |(_, value)| *value)).collect();
            values.insert(input.name.clone(), Value::from_tensor(&Tensor::f32(shape, &tensor)).unwrap());
        }
        Interpreter::new(model).unwrap().run(&values).unwrap()
    }

    #[test]
    fn what_is_not_used_costs_nothing() {
        let mut model = sgd(&layout()).unwrap();
        let before = model.graph.nodes.len();
        keep(&mut model, NOTHING).unwrap();
        let left =
            ["a", "b", "a.grad", "b.grad", "momentum", "lr", "momentum_factor", "weight_decay", "nesterov"];
        assert_eq!(inputs(&model), left);
        assert_eq!(before - model.graph.nodes.len(), 3 + 3 + 6);
        let mut model = sgd(&layout()).unwrap();
        keep(&mut model, Transforms { clip: true, ..NOTHING }).unwrap();
        assert!(inputs(&model).contains(&CLIP_NORM) && !inputs(&model).contains(&ANCHOR));
    }

    #[test]
    fn neutral_constants_change_nothing() {
        let scalars = [
            ("lr", 0.1),
            ("beta1", 0.9),
            ("beta2", 0.99),
            ("epsilon", 1e-8),
            ("bias1", 0.1),
            ("bias2", 0.01),
            ("v", 0.5),
            (WEIGHT, 1.0),
            (SCALE, 1.0),
            (ACCUMULATED, 0.0),
            (PROXIMAL_MU, 0.0),
            (CLIP_NORM, f32::INFINITY),
        ];
        let whole = adamw(&layout()).unwrap();
        let mut bare = whole.clone();
        keep(&mut bare, NOTHING).unwrap();
        let (whole, bare) = (outputs(&whole, &scalars), outputs(&bare, &scalars));
        assert_eq!(bare.len(), 4);
        for (name, value) in &bare {
            assert_eq!(value.as_float().unwrap(), whole[name].as_float().unwrap(), "{name}");
        }
    }

    #[test]
    fn accumulation_is_a_graph_of_its_own() {
        let mut model = sgd(&layout()).unwrap();
        accumulation(&mut model).unwrap();
        assert_eq!(inputs(&model), ["a.grad", "b.grad", ACCUMULATED, WEIGHT]);
        let sum = &outputs(&model, &[(WEIGHT, 2.0), (ACCUMULATED, 1.0)])[SUM];
        let first = sum.as_float().unwrap().iter().next().copied().unwrap();
        assert!((first - (1.0 + 2.0 * 0.5 * f64::from(6f32.sin()))).abs() < 1e-6, "{first}");
    }

    #[test]
    fn graphs_of_something_else_are_refused() {
        let mut model = Model::new(Graph::default());
        assert!(keep(&mut model, NOTHING).unwrap_err().to_string().contains("build the artifacts again"));
        assert!(accumulation(&mut model).is_err());
    }
}
