//! Optimizer step as a graph, for adapters that live on a device. It reads one set of tensors and writes
//! the other, because no graph may write what it still reads.

use fedpeft_artifacts::manifest::GRADIENT_SUFFIX;
use fedpeft_codec::Layout;
use fedpeft_protocol::run::OptimizerSpec;
use ort::{
    memory::Allocator,
    session::{IoBinding, Session},
    value::Tensor,
};

use super::{Schedule, Step};
use crate::{RuntimeError, graph::Side};

/// Suffix of the outputs that replace an input.
const NEXT: &str = ".next";

pub(crate) struct GraphOptimizer {
    // Bindings and tensors go before the session whose memory they may use.
    bindings: [IoBinding; 2],
    schedule: Schedule,
    session: Session,
}

impl GraphOptimizer {
    /// Binds `session` to both sets of the adapter, in both directions.
    pub fn new(
        session: Session,
        spec: OptimizerSpec,
        learning_rate: f64,
        layout: &Layout,
        adapter: &mut [Vec<Tensor<f32>>; 2],
        gradients: &[Tensor<f32>],
        allocator: &Allocator,
    ) -> Result<Self, RuntimeError> {
        let names: &[&str] = match spec {
            OptimizerSpec::Sgd { .. } => &["momentum"],
            OptimizerSpec::Adamw { .. } => &["m", "v"],
        };
        let mut bindings = [session.create_binding()?, session.create_binding()?];
        for name in names {
            let (mut a, mut b) = (zeros(layout.values(), allocator)?, zeros(layout.values(), allocator)?);
            bind_both(&mut bindings, name, &mut a, &mut b)?;
        }
        let [current, next] = adapter;
        for ((spec, gradient), (current, next)) in
            layout.tensors().iter().zip(gradients).zip(current.iter_mut().zip(next))
        {
            bind_both(&mut bindings, &spec.name, current, next)?;
            for binding in &mut bindings {
                binding.bind_input(format!("{}{GRADIENT_SUFFIX}", spec.name), gradient)?;
            }
        }
        Ok(Self { bindings, schedule: Schedule::new(spec, learning_rate), session })
    }

    /// Steps from the adapter's set `side` to the other one.
    pub fn step(&mut self, side: Side) -> Result<(), RuntimeError> {
        let binding = &mut self.bindings[side];
        let scalars: Vec<(&str, f32)> = match self.schedule.next() {
            Step::Sgd(step) => vec![
                ("lr", step.learning_rate),
                ("momentum_factor", step.momentum),
                ("weight_decay", step.weight_decay),
                ("nesterov", if step.nesterov { 1.0 } else { 0.0 }),
            ],
            Step::Adamw(step) => vec![
                ("lr", step.learning_rate),
                ("beta1", step.beta1),
                ("beta2", step.beta2),
                ("epsilon", step.epsilon),
                ("weight_decay", step.weight_decay),
                ("bias1", step.bias1),
                ("bias2", step.bias2),
            ],
        };
        for (name, value) in scalars {
            binding.bind_input(name, &Tensor::from_array((Vec::<i64>::new(), vec![value]))?)?;
        }
        self.session.run_binding(binding)?;
        Ok(())
    }
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
    forth.bind_output(format!("{name}{NEXT}"), &mut *b)?;
    back.bind_input(name, b)?;
    back.bind_output(format!("{name}{NEXT}"), a)?;
    Ok(())
}

fn zeros(count: usize, allocator: &Allocator) -> Result<Tensor<f32>, RuntimeError> {
    let mut tensor = Tensor::<f32>::new(allocator, vec![count as i64])?;
    let host = Tensor::<f32>::new(&Allocator::default(), vec![count as i64])?;
    host.copy_into(&mut tensor)?;
    Ok(tensor)
}
