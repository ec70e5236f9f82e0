//! The constants of each step.

use fedpeft_protocol::run::OptimizerSpec;

use crate::kernels::{AdamwStep, SgdStep};

/// Constants of one step.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Sgd(SgdStep),
    Adamw(AdamwStep),
}

/// Counts steps and derives each one's constants, in f64 as PyTorch does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Constants {
    spec: OptimizerSpec,
    steps: i32,
}

impl Constants {
    pub fn new(spec: OptimizerSpec) -> Self {
        Self { spec, steps: 0 }
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        u64::try_from(self.steps).unwrap_or(0)
    }

    /// Goes on after so many steps.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = i32::try_from(steps).unwrap_or(i32::MAX);
    }

    /// Of the next step, at this learning rate.
    pub fn next(&mut self, learning_rate: f64) -> Step {
        self.steps = self.steps.saturating_add(1);
        let learning_rate = learning_rate as f32;
        match self.spec {
            OptimizerSpec::Sgd { momentum, nesterov, weight_decay } => Step::Sgd(SgdStep {
                learning_rate,
                momentum: momentum as f32,
                weight_decay: weight_decay as f32,
                nesterov,
            }),
            OptimizerSpec::Adamw { beta1, beta2, epsilon, weight_decay } => Step::Adamw(AdamwStep {
                learning_rate,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                epsilon: epsilon as f32,
                weight_decay: weight_decay as f32,
                bias1: (1.0 - beta1.powi(self.steps)) as f32,
                bias2: (1.0 - beta2.powi(self.steps)) as f32,
            }),
        }
    }
}
