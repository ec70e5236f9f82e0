//! Optimizer step as a graph, for adapters that live on a device. It reads one set of tensors and writes
//! the other, because no graph may write what it still reads.

use fedpeft_artifacts::{
    manifest::GRADIENT_SUFFIX,
    optimizer::{NEXT_SUFFIX, gradient, rows},
};
use fedpeft_codec::Layout;
use fedpeft_protocol::run::{OptimizerSpec, TrainingSpec};
use ort::{
    memory::Allocator,
    session::{IoBinding, Session},
    value::Tensor,
};

use super::{
    check,
    constants::{Constants, Step},
};
use crate::{
    OptimizerState, RuntimeError,
    graph::{Side, filled},
};

/// What happens to gradients before a step of `training`. A constant that is added to them is added as micro-batches
/// are.
pub(crate) fn transforms(training: &TrainingSpec, is_corrected: bool) -> gradient::Transforms {
    gradient::Transforms {
        accumulate: training.accumulate > 1 || is_corrected,
        proximal: training.proximal_mu > 0.0,
        clip: training.clip_norm.is_some(),
    }
}

/// Sessions of an optimizer's graph.
pub(crate) struct Sessions {
    /// The graph, with the transformations that are used.
    pub step: Session,
    /// The part that accumulates, where a step has several micro-batches or a correction.
    pub accumulation: Option<Session>,
}

/// What both sessions work on.
pub(crate) struct Bound<'a> {
    pub layout: &'a Layout,
    /// Both sets.
    pub adapter: &'a mut [Vec<Tensor<f32>>; 2],
    pub gradients: &'a [Tensor<f32>],
    /// The adapter that the proximal term pulls to, flat; empty where there is none.
    pub anchor: &'a [f32],
    /// What is added to every gradient, flat.
    pub correction: Option<&'a [f32]>,
    pub allocator: &'a Allocator,
}

pub(crate) struct GraphOptimizer {
    // Bindings and tensors go before the session whose memory they may use.
    bindings: [IoBinding; 2],
    /// Velocity, or first and second moment, joined; each beside the adapter's set of the same number.
    state: Vec<[Tensor<f32>; 2]>,
    layout: Layout,
    accumulation: Option<Accumulation>,
    constants: Constants,
    session: Session,
}

impl GraphOptimizer {
    /// Binds the sessions to both sets of the adapter, in both directions.
    pub fn new(sessions: Sessions, training: &TrainingSpec, bound: Bound<'_>) -> Result<Self, RuntimeError> {
        let Sessions { step: session, accumulation } = sessions;
        let Bound { layout, adapter: [current, next], gradients, anchor, correction, allocator } = bound;
        let names: &[&str] = match training.optimizer {
            OptimizerSpec::Sgd { .. } => &["momentum"],
            OptimizerSpec::Adamw { .. } => &["m", "v"],
        };
        let mut bindings = [session.create_binding()?, session.create_binding()?];
        let mut state = Vec::new();
        for name in names {
            let (mut a, mut b) = (zeros(layout, allocator)?, zeros(layout, allocator)?);
            bind_both(&mut bindings, name, &mut a, &mut b)?;
            state.push([a, b]);
        }
        for (spec, (current, next)) in layout.tensors().iter().zip(current.iter_mut().zip(next)) {
            bind_both(&mut bindings, &spec.name, current, next)?;
        }
        let anchor = if anchor.is_empty() { None } else { Some(joined(layout, anchor, allocator)?) };
        for binding in &mut bindings {
            bind_gradients(binding, layout, gradients)?;
            if let Some(anchor) = &anchor {
                binding.bind_input(gradient::ANCHOR, anchor)?;
                bind_scalar(binding, gradient::PROXIMAL_MU, training.proximal_mu as f32)?;
            }
            if let Some(norm) = training.clip_norm {
                bind_scalar(binding, gradient::CLIP_NORM, norm as f32)?;
            }
        }
        let accumulation = accumulation
            .map(|session| Accumulation::new(session, layout, gradients, correction, allocator))
            .transpose()?;
        let constants = Constants::new(training.optimizer);
        Ok(Self { bindings, state, layout: layout.clone(), accumulation, constants, session })
    }

    /// What the next steps depend on, where the adapter is in its set `side`.
    pub fn state(&self, side: Side) -> Result<OptimizerState, RuntimeError> {
        let read = |part: Option<&[Tensor<f32>; 2]>| match part {
            Some(sets) => {
                let mut host = Tensor::<f32>::new(&Allocator::default(), sets[side].shape().to_vec())?;
                sets[side].copy_into(&mut host)?;
                Ok::<_, RuntimeError>(rows::part(&self.layout, host.extract_tensor().1))
            }
            None => Ok(Vec::new()),
        };
        let (first, second) = (read(self.state.first())?, read(self.state.get(1))?);
        Ok(OptimizerState { steps: self.constants.steps(), first, second })
    }

    /// Goes on from `state`, where the adapter is in its set `side`.
    pub fn set_state(&mut self, side: Side, state: &OptimizerState) -> Result<(), RuntimeError> {
        self.constants.set_steps(state.steps);
        let parts = [&state.first, &state.second];
        for (sets, values) in self.state.iter_mut().zip(parts) {
            check(self.layout.values(), values)?;
            let mut host = Tensor::<f32>::new(&Allocator::default(), sets[side].shape().to_vec())?;
            host.extract_tensor_mut().1.copy_from_slice(&rows::join(&self.layout, values));
            host.copy_into(&mut sets[side])?;
        }
        match parts.get(self.state.len()) {
            Some(rest) => check(0, rest),
            None => Ok(()),
        }
    }

    /// Forgets gradients that no step has used.
    pub fn begin(&mut self) {
        if let Some(accumulation) = &mut self.accumulation {
            accumulation.clear();
        }
    }

    /// Adds the bound gradients with this weight to those of the next step.
    pub fn accumulate(&mut self, weight: f64) -> Result<(), RuntimeError> {
        self.accumulation.as_mut().map_or(Ok(()), |accumulation| accumulation.add(weight))
    }

    /// Steps from the adapter's set `side` to the other one, along the mean of the bound gradients and of what
    /// was accumulated.
    pub fn step(&mut self, side: Side, weight: f64, learning_rate: f64) -> Result<(), RuntimeError> {
        let binding = &mut self.bindings[side];
        if let Some(accumulation) = &mut self.accumulation {
            accumulation.hand_over(binding, weight)?;
        }
        match self.constants.next(learning_rate) {
            Step::Sgd(step) => {
                bind_scalar(binding, "lr", step.learning_rate)?;
                bind_scalar(binding, "momentum_factor", step.momentum)?;
                bind_scalar(binding, "weight_decay", step.weight_decay)?;
                bind_scalar(binding, "nesterov", if step.nesterov { 1.0 } else { 0.0 })?;
            }
            Step::Adamw(step) => {
                bind_scalar(binding, "lr", step.learning_rate)?;
                bind_scalar(binding, "beta1", step.beta1)?;
                bind_scalar(binding, "beta2", step.beta2)?;
                bind_scalar(binding, "epsilon", step.epsilon)?;
                bind_scalar(binding, "weight_decay", step.weight_decay)?;
                bind_scalar(binding, "bias1", step.bias1)?;
                bind_scalar(binding, "bias2", step.bias2)?;
            }
        }
        self.session.run_binding(binding)?;
        Ok(())
    }
}

/// The weighted sum of the gradients of all micro-batches of a step but the last, which the step itself adds.
struct Accumulation {
    binding: IoBinding,
    /// Adds what is added to every gradient, where something is.
    correcting: Option<(IoBinding, Vec<Tensor<f32>>)>,
    /// Zeros, which a sum begins with, and two sums, one of which is read while the other is written.
    sums: [Tensor<f32>; 3],
    current: usize,
    /// Weight of what the current sum holds.
    weight: f64,
    session: Session,
}

impl Accumulation {
    fn new(
        session: Session,
        layout: &Layout,
        gradients: &[Tensor<f32>],
        correction: Option<&[f32]>,
        allocator: &Allocator,
    ) -> Result<Self, RuntimeError> {
        let correcting = match correction {
            None => None,
            Some(values) => {
                let (mut binding, tensors) = (session.create_binding()?, filled(layout, values, allocator)?);
                bind_gradients(&mut binding, layout, &tensors)?;
                Some((binding, tensors))
            }
        };
        let zeros = || zeros(layout, allocator);
        let mut binding = session.create_binding()?;
        bind_gradients(&mut binding, layout, gradients)?;
        let sums = [zeros()?, zeros()?, zeros()?];
        Ok(Self { binding, correcting, sums, current: 0, weight: 0.0, session })
    }

    fn clear(&mut self) {
        (self.current, self.weight) = (0, 0.0);
    }

    fn add(&mut self, weight: f64) -> Result<(), RuntimeError> {
        let Self { binding, sums, current, session, .. } = self;
        accumulate(session, binding, sums, current, weight)?;
        self.weight += weight;
        Ok(())
    }

    /// Binds the sum to a step, to which a micro-batch of this weight belongs as well.
    fn hand_over(&mut self, step: &mut IoBinding, weight: f64) -> Result<(), RuntimeError> {
        // The only micro-batch of a step has its gradient as it is.
        let weight = if self.weight == 0.0 { 1.0 } else { weight };
        let Self { correcting, sums, current, session, .. } = self;
        if let Some((binding, _)) = correcting {
            accumulate(session, binding, sums, current, self.weight + weight)?;
        }
        step.bind_input(gradient::ACCUMULATED, &self.sums[self.current])?;
        bind_scalar(step, gradient::WEIGHT, weight as f32)?;
        bind_scalar(step, gradient::SCALE, (1.0 / (self.weight + weight)) as f32)?;
        self.clear();
        Ok(())
    }
}

/// Adds the gradients of `binding` with this weight to the current sum; the result is another, current from then on.
fn accumulate(
    session: &mut Session,
    binding: &mut IoBinding,
    sums: &mut [Tensor<f32>; 3],
    current: &mut usize,
    weight: f64,
) -> Result<(), RuntimeError> {
    binding.bind_input(gradient::ACCUMULATED, &sums[*current])?;
    *current = if *current == 1 { 2 } else { 1 };
    binding.bind_output(gradient::SUM, &mut sums[*current])?;
    bind_scalar(binding, gradient::WEIGHT, weight as f32)?;
    session.run_binding(binding)?;
    Ok(())
}

/// Binds input `name` and output `<name>.next` to two tensors, one way in the first binding and the other
/// way in the second.
fn bind_both(
    bindings: &mut [IoBinding; 2],
    name: &str,
    a: &mut Tensor<f32>,
    b: &mut Tensor<f32>,
) -> Result<(), RuntimeError> {
    let [forth, back] = bindings;
    forth.bind_input(name, a)?;
    forth.bind_output(format!("{name}{NEXT_SUFFIX}"), &mut *b)?;
    back.bind_input(name, b)?;
    back.bind_output(format!("{name}{NEXT_SUFFIX}"), a)?;
    Ok(())
}

fn bind_gradients(
    binding: &mut IoBinding,
    layout: &Layout,
    gradients: &[Tensor<f32>],
) -> Result<(), RuntimeError> {
    for (spec, gradient) in layout.tensors().iter().zip(gradients) {
        binding.bind_input(format!("{}{GRADIENT_SUFFIX}", spec.name), gradient)?;
    }
    Ok(())
}

fn bind_scalar(binding: &mut IoBinding, name: &str, value: f32) -> Result<(), RuntimeError> {
    binding.bind_input(name, &Tensor::from_array((Vec::<i64>::new(), vec![value]))?)?;
    Ok(())
}

fn zeros(layout: &Layout, allocator: &Allocator) -> Result<Tensor<f32>, RuntimeError> {
    joined(layout, &[], allocator)
}

fn joined(layout: &Layout, flat: &[f32], allocator: &Allocator) -> Result<Tensor<f32>, RuntimeError> {
    let shape = [rows::total(layout) as i64, rows::ROW as i64];
    let mut host = Tensor::<f32>::new(&Allocator::default(), shape)?;
    host.extract_tensor_mut().1.copy_from_slice(&rows::join(layout, flat));
    let mut tensor = Tensor::<f32>::new(allocator, shape)?;
    host.copy_into(&mut tensor)?;
    Ok(tensor)
}
