//! Optimizers: native kernels over tensors in host memory, the optimizer graph over tensors on a device.
//! Both start with a state of zeros.

mod graph;
mod host;

pub(crate) use graph::GraphOptimizer;
pub(crate) use host::HostOptimizer;

use fedpeft_protocol::run::OptimizerSpec;

use crate::kernels::{AdamwStep, SgdStep};

/// Constants of the next step.
#[derive(Debug, Clone, Copy)]
enum Step {
    Sgd(SgdStep),
    Adamw(AdamwStep),
}

/// Counts steps and derives each one's constants, in f64 as PyTorch does.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    spec: OptimizerSpec,
    learning_rate: f64,
    steps: i32,
}

impl Schedule {
    fn new(spec: OptimizerSpec, learning_rate: f64) -> Self {
        Self { spec, learning_rate, steps: 0 }
    }

    fn next(&mut self) -> Step {
        self.steps = self.steps.saturating_add(1);
        let learning_rate = self.learning_rate as f32;
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
