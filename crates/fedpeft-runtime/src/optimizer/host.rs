//! Optimizer step in one pass over memory, in place.

use fedpeft_codec::Layout;
use fedpeft_protocol::run::OptimizerSpec;
use ort::value::Tensor;

use super::{Schedule, Step};
use crate::kernels;

/// Values below which one thread is faster than starting others.
const PARALLEL_VALUES: usize = 1 << 20;

pub(crate) struct HostOptimizer {
    schedule: Schedule,
    /// Flat, in layout order: the velocity, or the first moment.
    first: Vec<f32>,
    /// The second moment; empty for SGD.
    second: Vec<f32>,
    threads: usize,
}

/// A tensor, or a part of one, with its gradient and state.
struct Part<'a> {
    parameters: &'a mut [f32],
    gradients: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl HostOptimizer {
    pub fn new(spec: OptimizerSpec, learning_rate: f64, layout: &Layout, threads: usize) -> Self {
        let values = layout.values();
        let second = if matches!(spec, OptimizerSpec::Adamw { .. }) { values } else { 0 };
        let schedule = Schedule::new(spec, learning_rate);
        Self { schedule, first: vec![0.0; values], second: vec![0.0; second], threads: threads.max(1) }
    }

    pub fn step(&mut self, adapter: &mut [Tensor<f32>], gradients: &[Tensor<f32>]) {
        let step = self.schedule.next();
        let parallel = self.threads > 1 && self.first.len() >= PARALLEL_VALUES;
        let parts = parts(adapter, gradients, &mut self.first, &mut self.second);
        if !parallel {
            parts.for_each(|part| part.apply(step));
            return;
        }
        // Each value is computed alone, so how they are divided among threads does not show in the result.
        let mut shares: Vec<Vec<Part<'_>>> = (0..self.threads).map(|_| Vec::new()).collect();
        for (index, part) in parts.flat_map(Part::split).enumerate() {
            shares[index % self.threads].push(part);
        }
        std::thread::scope(|scope| {
            for share in shares {
                scope.spawn(move || share.into_iter().for_each(|part| part.apply(step)));
            }
        });
    }
}

fn parts<'a>(
    adapter: &'a mut [Tensor<f32>],
    gradients: &'a [Tensor<f32>],
    first: &'a mut [f32],
    second: &'a mut [f32],
) -> impl Iterator<Item = Part<'a>> {
    let (mut first, mut second) = (first, second);
    adapter.iter_mut().zip(gradients).map(move |(parameters, gradients)| {
        let (parameters, gradients) = (parameters.extract_tensor_mut().1, gradients.extract_tensor().1);
        let count = parameters.len();
        let first = first.split_off_mut(..count.min(first.len())).unwrap_or_default();
        let second = second.split_off_mut(..count.min(second.len())).unwrap_or_default();
        Part { parameters, gradients, first, second }
    })
}

impl<'a> Part<'a> {
    fn apply(self, step: Step) {
        let Self { parameters, gradients, first, second } = self;
        match step {
            Step::Sgd(step) => kernels::sgd(step, parameters, gradients, first),
            Step::Adamw(step) => kernels::adamw(step, parameters, gradients, first, second),
        }
    }

    /// Parts of at most 64 Ki values.
    fn split(self) -> impl Iterator<Item = Part<'a>> {
        const SIZE: usize = 64 << 10;
        let mut second = self.second.chunks_mut(SIZE);
        let values = self.parameters.chunks_mut(SIZE).zip(self.gradients.chunks(SIZE));
        values.zip(self.first.chunks_mut(SIZE)).map(move |((parameters, gradients), first)| Part {
            parameters,
            gradients,
            first,
            second: second.next().unwrap_or_default(),
        })
    }
}
