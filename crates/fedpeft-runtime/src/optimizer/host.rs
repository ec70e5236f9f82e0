//! Optimizer step in one pass over memory, in place. Clipping takes one more pass, which only reads.

use fedpeft_codec::Layout;
use fedpeft_protocol::run::{OptimizerSpec, TrainingSpec};
use ort::{memory::Allocator, value::Tensor};

use super::{
    constants::{Constants, Step},
    overwrite,
};
use crate::{
    OptimizerState, RuntimeError,
    graph::{filled, tensors},
    kernels::{self, Gradient},
};

/// Values below which one thread is faster than starting others.
const PARALLEL_VALUES: usize = 1 << 20;

/// Values of a part. It does not depend on the number of threads, so neither does the norm of the gradient,
/// which is the sum of the parts' in their order.
const PART_VALUES: usize = 64 << 10;

/// Keeps the quotient finite where the gradient is zero, as PyTorch does.
const CLIP_EPSILON: f64 = 1e-6;

pub(crate) struct HostOptimizer {
    constants: Constants,
    clip_norm: Option<f64>,
    proximal_mu: f64,
    /// Flat, in layout order: the velocity, or the first moment.
    first: Vec<f32>,
    /// The second moment; empty for SGD.
    second: Vec<f32>,
    /// The adapter that the proximal term pulls to; empty where there is no such term.
    anchor: Vec<f32>,
    /// Squared norm of the gradient by part; empty where nothing is clipped.
    squares: Vec<f64>,
    /// What is added to every gradient; empty where nothing is.
    correction: Vec<Tensor<f32>>,
    /// Weighted sum of gradients; empty where there is one micro-batch per step, and nothing to add to it.
    sum: Vec<Tensor<f32>>,
    /// Weight of what `sum` holds.
    weight: f64,
    threads: usize,
}

/// A part of a tensor, with its gradient and state.
struct Part<'a> {
    parameters: &'a mut [f32],
    gradient: &'a [f32],
    anchor: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl HostOptimizer {
    /// `anchor` is the adapter that the proximal term of `training` pulls to; empty where it has none. `correction` is
    /// added to every gradient.
    pub fn new(
        training: &TrainingSpec,
        anchor: Vec<f32>,
        correction: Option<&[f32]>,
        layout: &Layout,
        threads: usize,
    ) -> Result<Self, RuntimeError> {
        let values = layout.values();
        let second = if matches!(training.optimizer, OptimizerSpec::Adamw { .. }) { values } else { 0 };
        let parts: usize = layout.tensors().iter().map(|spec| spec.values().div_ceil(PART_VALUES)).sum();
        let accumulates = training.accumulate > 1 || correction.is_some();
        let allocator = Allocator::default();
        let correction = correction.map(|values| filled(layout, values, &allocator)).transpose()?;
        Ok(Self {
            constants: Constants::new(training.optimizer),
            clip_norm: training.clip_norm,
            proximal_mu: training.proximal_mu,
            first: vec![0.0; values],
            second: vec![0.0; second],
            anchor,
            squares: vec![0.0; if training.clip_norm.is_some() { parts } else { 0 }],
            correction: correction.unwrap_or_default(),
            sum: if accumulates { tensors(layout, &allocator)? } else { Vec::new() },
            weight: 0.0,
            threads: if values < PARALLEL_VALUES { 1 } else { threads.max(1) },
        })
    }

    /// What the next steps depend on.
    pub fn state(&self) -> OptimizerState {
        let steps = self.constants.steps();
        OptimizerState { steps, first: self.first.clone(), second: self.second.clone() }
    }

    /// Goes on from `state`.
    pub fn set_state(&mut self, state: &OptimizerState) -> Result<(), RuntimeError> {
        self.constants.set_steps(state.steps);
        overwrite(&mut self.first, &state.first)?;
        overwrite(&mut self.second, &state.second)
    }

    /// Forgets gradients that no step has used.
    pub fn begin(&mut self) {
        self.weight = 0.0;
    }

    /// Adds `gradients` with this weight to those of the next step.
    pub fn accumulate(&mut self, gradients: &[Tensor<f32>], weight: f64) {
        let first = self.weight == 0.0;
        self.weight += weight;
        add(&mut self.sum, gradients, weight, first, self.threads);
    }

    /// Steps along the mean of `gradients` and of what was accumulated.
    pub fn step(
        &mut self,
        adapter: &mut [Tensor<f32>],
        gradients: &[Tensor<f32>],
        weight: f64,
        learning_rate: f64,
    ) {
        if self.weight == 0.0 && self.correction.is_empty() {
            return self.descend(adapter, gradients, 1.0, learning_rate);
        }
        // The only micro-batch of a step has its gradient as it is.
        self.accumulate(gradients, if self.weight == 0.0 { 1.0 } else { weight });
        add(&mut self.sum, &self.correction, self.weight, false, self.threads);
        let sum = std::mem::take(&mut self.sum);
        self.descend(adapter, &sum, 1.0 / self.weight, learning_rate);
        (self.sum, self.weight) = (sum, 0.0);
    }

    /// Steps along `scale` times `gradients`.
    fn descend(
        &mut self,
        adapter: &mut [Tensor<f32>],
        gradients: &[Tensor<f32>],
        scale: f64,
        learning_rate: f64,
    ) {
        let clip = self.clip_factor(adapter, gradients, scale);
        let (factor, pull) = ((scale * clip) as f32, (self.proximal_mu * clip) as f32);
        let step = self.constants.next(learning_rate);
        let parts = parts(adapter, gradients, &self.anchor, &mut self.first, &mut self.second);
        for_each(parts, self.threads, |part| part.descend(step, factor, pull));
    }

    /// What clipping multiplies the gradient by.
    fn clip_factor(&mut self, adapter: &mut [Tensor<f32>], gradients: &[Tensor<f32>], scale: f64) -> f64 {
        let Some(clip_norm) = self.clip_norm else { return 1.0 };
        let (factor, pull) = (scale as f32, self.proximal_mu as f32);
        let parts = parts(adapter, gradients, &self.anchor, &mut self.first, &mut self.second);
        for_each(parts.zip(&mut self.squares), self.threads, |(part, squares)| {
            *squares = kernels::squared_norm(part.gradient(factor, pull), part.parameters);
        });
        let norm = self.squares.iter().sum::<f64>().sqrt();
        (clip_norm / (norm + CLIP_EPSILON)).min(1.0)
    }
}

/// Adds `weight` times `gradients` to `sum`, or replaces it where they are the first.
fn add(sum: &mut [Tensor<f32>], gradients: &[Tensor<f32>], weight: f64, first: bool, threads: usize) {
    let pairs = sum.iter_mut().zip(gradients).flat_map(|(sum, gradient)| {
        let gradient = gradient.extract_tensor().1.chunks(PART_VALUES);
        sum.extract_tensor_mut().1.chunks_mut(PART_VALUES).zip(gradient)
    });
    for_each(pairs, threads, |(sum, gradient)| kernels::accumulate(weight as f32, gradient, first, sum));
}

/// Does `work` for every part. Each is computed alone, so how they are divided among threads does not show in
/// the result.
fn for_each<P: Send>(parts: impl Iterator<Item = P>, threads: usize, work: impl Fn(P) + Sync) {
    if threads == 1 {
        return parts.for_each(work);
    }
    let mut shares: Vec<Vec<P>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, part) in parts.enumerate() {
        shares[index % threads].push(part);
    }
    let work = &work;
    std::thread::scope(|scope| {
        for share in shares {
            scope.spawn(move || share.into_iter().for_each(work));
        }
    });
}

fn parts<'a>(
    adapter: &'a mut [Tensor<f32>],
    gradients: &'a [Tensor<f32>],
    mut anchor: &'a [f32],
    mut first: &'a mut [f32],
    mut second: &'a mut [f32],
) -> impl Iterator<Item = Part<'a>> {
    let tensors = adapter.iter_mut().zip(gradients).map(move |(parameters, gradient)| {
        let (parameters, gradient) = (parameters.extract_tensor_mut().1, gradient.extract_tensor().1);
        let count = parameters.len();
        let anchor = anchor.split_off(..count.min(anchor.len())).unwrap_or_default();
        let first = first.split_off_mut(..count.min(first.len())).unwrap_or_default();
        let second = second.split_off_mut(..count.min(second.len())).unwrap_or_default();
        Part { parameters, gradient, anchor, first, second }
    });
    tensors.flat_map(Part::split)
}

impl<'a> Part<'a> {
    /// Parts of at most [`PART_VALUES`] values.
    fn split(self) -> impl Iterator<Item = Part<'a>> {
        let mut anchor = self.anchor.chunks(PART_VALUES);
        let mut second = self.second.chunks_mut(PART_VALUES);
        let values = self.parameters.chunks_mut(PART_VALUES).zip(self.gradient.chunks(PART_VALUES));
        values.zip(self.first.chunks_mut(PART_VALUES)).map(move |((parameters, gradient), first)| Part {
            parameters,
            gradient,
            anchor: anchor.next().unwrap_or_default(),
            first,
            second: second.next().unwrap_or_default(),
        })
    }

    fn gradient(&self, factor: f32, pull: f32) -> Gradient<'a> {
        Gradient { values: self.gradient, factor, pull, anchor: self.anchor }
    }

    fn descend(self, step: Step, factor: f32, pull: f32) {
        let gradient = self.gradient(factor, pull);
        match step {
            Step::Sgd(step) => kernels::sgd(step, self.parameters, gradient, self.first),
            Step::Adamw(step) => kernels::adamw(step, self.parameters, gradient, self.first, self.second),
        }
    }
}
