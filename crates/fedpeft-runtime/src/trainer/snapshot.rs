//! Where local training stands between two optimizer steps, so that it can go on elsewhere.
//!
//! A resumed training gives the bytes of one that was never interrupted: between two steps no gradient is
//! accumulated, and orders and dropout follow from seed and step alone.

use super::Trainer;
use crate::{Optimizer, RuntimeError};

/// All that the rest of a training depends on besides its specification, its examples and the adapter it began
/// with.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Optimizer steps done.
    pub steps: u64,
    /// Weighted sum of the losses of this local epoch so far.
    pub loss: f64,
    /// What the losses are weighted with, summed.
    pub weight: f64,
    /// Seconds spent so far.
    pub seconds: f64,
    /// The adapter, in layout order.
    pub adapter: Vec<f32>,
    /// The optimizer's state.
    pub optimizer: OptimizerState,
}

/// What an optimizer remembers from step to step, flat in layout order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OptimizerState {
    /// Steps counted.
    pub steps: u64,
    /// The velocity of SGD or the first moment of AdamW.
    pub first: Vec<f32>,
    /// The second moment of AdamW; empty for SGD.
    pub second: Vec<f32>,
}

/// A training between two steps.
pub struct Standing<'a> {
    pub(super) trainer: &'a Trainer,
    pub(super) optimizer: &'a Optimizer,
    pub(super) steps: u64,
    pub(super) planned: u64,
    pub(super) loss: f64,
    pub(super) weight: f64,
    pub(super) seconds: f64,
}

impl Standing<'_> {
    /// Optimizer steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Optimizer steps in all.
    pub fn planned(&self) -> u64 {
        self.planned
    }

    /// Copies what the rest of the training depends on.
    pub fn snapshot(&self) -> Result<Snapshot, RuntimeError> {
        let mut adapter = Vec::new();
        self.trainer.adapter_into(&mut adapter)?;
        let optimizer = self.optimizer.state(&self.trainer.adapter)?;
        let Self { steps, loss, weight, seconds, .. } = *self;
        Ok(Snapshot { steps, loss, weight, seconds, adapter, optimizer })
    }
}
