//! Optimizers: native kernels over tensors in host memory, the optimizer graph over tensors on a device.
//! Both start with a state of zeros.

mod constants;
mod graph;
mod host;
#[cfg(test)]
mod tests;

pub(crate) use graph::{Bound, GraphOptimizer, Sessions, transforms};
pub(crate) use host::HostOptimizer;

use fedpeft_protocol::run::TrainingSpec;
use ort::value::Tensor;

use crate::{OptimizerState, RuntimeError, adapter::Adapter};

/// An optimizer with its state; see [`crate::Trainer::optimizer`].
pub struct Optimizer {
    form: Form,
    learning_rate: f64,
    micro_batch: usize,
}

pub(crate) enum Form {
    Host(Box<HostOptimizer>),
    Graph(Box<GraphOptimizer>),
}

impl Optimizer {
    pub(crate) fn new(form: Form, training: &TrainingSpec) -> Self {
        let micro_batch = match training.accumulate {
            0 | 1 => usize::MAX,
            parts => training.batch_size.div_ceil(parts).max(1) as usize,
        };
        Self { form, learning_rate: training.learning_rate, micro_batch }
    }

    /// Sets the learning rate of the steps that follow.
    pub fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }

    /// Most examples whose gradient is computed at once.
    pub(crate) fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// What the next steps depend on, of an optimizer that works on `adapter`.
    pub(crate) fn state(&self, adapter: &Adapter) -> Result<OptimizerState, RuntimeError> {
        match &self.form {
            Form::Host(optimizer) => Ok(optimizer.state()),
            Form::Graph(optimizer) => optimizer.state(adapter.side()),
        }
    }

    /// Goes on from a state that an optimizer of the same kind was in.
    pub(crate) fn set_state(
        &mut self,
        adapter: &Adapter,
        state: &OptimizerState,
    ) -> Result<(), RuntimeError> {
        match &mut self.form {
            Form::Host(optimizer) => optimizer.set_state(state),
            Form::Graph(optimizer) => optimizer.set_state(adapter.side(), state),
        }
    }

    /// Forgets gradients that no step has used.
    pub(crate) fn begin(&mut self) {
        match &mut self.form {
            Form::Host(optimizer) => optimizer.begin(),
            Form::Graph(optimizer) => optimizer.begin(),
        }
    }

    /// Adds the gradients of a micro-batch that is not the last.
    pub(crate) fn accumulate(&mut self, gradients: &[Tensor<f32>], weight: f64) -> Result<(), RuntimeError> {
        match &mut self.form {
            Form::Host(optimizer) => optimizer.accumulate(gradients, weight),
            Form::Graph(optimizer) => optimizer.accumulate(weight)?,
        }
        Ok(())
    }

    /// Steps along the mean of `gradients`, those of the last or only micro-batch, and of what was accumulated.
    pub(crate) fn step(
        &mut self,
        adapter: &mut Adapter,
        gradients: &[Tensor<f32>],
        weight: f64,
    ) -> Result<(), RuntimeError> {
        match &mut self.form {
            Form::Host(optimizer) => {
                optimizer.step(adapter.current_mut(), gradients, weight, self.learning_rate);
            }
            Form::Graph(optimizer) => {
                optimizer.step(adapter.side(), weight, self.learning_rate)?;
                adapter.swap();
            }
        }
        Ok(())
    }
}

/// Checks that a part of an optimizer's state has as many values as it must.
fn check(expected: usize, values: &[f32]) -> Result<(), RuntimeError> {
    if values.len() == expected {
        return Ok(());
    }
    Err(RuntimeError::Snapshot(format!("the optimizer's state has {} values, not {expected}", values.len())))
}

/// Overwrites a part of an optimizer's state.
fn overwrite(part: &mut [f32], values: &[f32]) -> Result<(), RuntimeError> {
    check(part.len(), values)?;
    part.copy_from_slice(values);
    Ok(())
}
