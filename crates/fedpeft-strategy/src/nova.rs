//! Normalised averaging (FedNova, Wang et al., arXiv 2007.07481): clients that make more local steps do not count twice.
//!
//! With `x` the global adapter and `x_i`, `n_i` a client's adapter and examples, and `a_i` the norm of the weights with
//! which its gradients are in `x_i - x` (its number of steps, where SGD has no momentum):
//!
//! ```text
//! x + tau sum_i (n_i / n) (x_i - x) / a_i        n = sum_i n_i,  tau = sum_i (n_i / n) a_i
//! ```

use fedpeft_protocol::run::{OptimizerSpec, TrainingSpec};

use crate::accumulator::{AccumulateError, MAX_WEIGHT, Weight};

/// The local training of a run's clients, as far as it says how long their updates are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    epochs: u64,
    batch: u64,
    momentum: f64,
    nesterov: bool,
    /// Learning rate times the weight of the proximal term.
    pull: f64,
    /// Units of a weight for one example per step.
    unit: f64,
}

impl Steps {
    /// Of a training that `RunSpec::validate` has found to be SGD.
    pub fn of_spec(training: &TrainingSpec) -> Self {
        let (momentum, nesterov) = match training.optimizer {
            OptimizerSpec::Sgd { momentum, nesterov, .. } => (momentum, nesterov),
            OptimizerSpec::Adamw { .. } => (0.0, false),
        };
        let batch = u64::from(training.batch_size).max(1);
        Self {
            epochs: u64::from(training.local_epochs),
            batch,
            momentum,
            nesterov,
            pull: training.learning_rate * training.proximal_mu,
            // A client has at most a batch of examples for a step: half of the largest weight, so that a proximal term may
            // shorten its updates to a half.
            unit: (MAX_WEIGHT / 2 / batch.next_power_of_two()).max(1) as f64,
        }
    }

    /// `a_i`: the displacement, in learning rates, that a constant gradient of 1 makes in the local training of a client
    /// (section 3 of the paper, for any momentum and proximal term).
    pub fn displacement(&self, examples: u64) -> f64 {
        let steps = self.epochs.saturating_mul(examples.div_ceil(self.batch));
        if self.momentum == 0.0 && self.pull == 0.0 {
            return steps as f64;
        }
        let (mut velocity, mut displacement) = (0.0, 0.0);
        for _ in 0..steps {
            let gradient = 1.0 - self.pull * displacement;
            velocity = self.momentum * velocity + gradient;
            displacement += if self.nesterov { gradient + self.momentum * velocity } else { velocity };
        }
        displacement
    }

    /// `n_i / a_i` in whole units.
    ///
    /// # Errors
    /// No examples, or a ratio that no weight holds.
    pub fn weight(&self, examples: u64) -> Result<Weight, AccumulateError> {
        Weight::new(examples)?;
        // A conversion of floats to integers saturates.
        Weight::new(((examples as f64 / self.displacement(examples) * self.unit).round() as u64).max(1))
    }

    /// What the sum of weighted updates is divided by; `examples` are those of each update, in an order that is always the
    /// same.
    pub fn divisor(&self, examples: &[u64]) -> f64 {
        let total: u64 = examples.iter().sum();
        let weighted: f64 = examples.iter().map(|n| *n as f64 * self.displacement(*n)).sum();
        let tau = weighted / total as f64;
        total as f64 * self.unit / tau
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(momentum: f64, nesterov: bool, mu: f64) -> Steps {
        Steps::of_spec(&TrainingSpec {
            local_epochs: 2,
            batch_size: 10,
            learning_rate: 0.1,
            proximal_mu: mu,
            optimizer: OptimizerSpec::Sgd { momentum, nesterov, weight_decay: 0.0 },
            ..Default::default()
        })
    }

    #[test]
    fn displacements_are_those_of_the_paper() {
        let close =
            |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-9 * wanted, "{found} {wanted}");
        // 25 examples in batches of 10 make 3 steps an epoch.
        close(steps(0.0, false, 0.0).displacement(25), 6.0);
        // Momentum: (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho).
        let (rho, tau) = (0.9f64, 6.0);
        let wanted = (tau - rho * (1.0 - rho.powf(tau)) / (1.0 - rho)) / (1.0 - rho);
        close(steps(rho, false, 0.0).displacement(25), wanted);
        // Proximal: (1 - (1 - eta mu)^tau) / (eta mu).
        let pull = 0.1 * 0.5f64;
        close(steps(0.0, false, 0.5).displacement(25), (1.0 - (1.0 - pull).powf(tau)) / pull);
        // Nesterov, two steps, by hand: 1 + 0.9, then v = 1.9 and 1 + 0.9 * 1.9.
        close(steps(0.9, true, 0.0).displacement(10), 1.9 + 2.71);
    }

    #[test]
    fn weights_are_examples_per_step() {
        let steps = steps(0.0, false, 0.0);
        let ratio = |examples| steps.weight(examples).unwrap().get() as f64 / steps.unit;
        // A full batch in each of two epochs, and a batch with one example.
        assert!((ratio(10) - 5.0).abs() < 1e-5 && (ratio(11) - 11.0 / 4.0).abs() < 1e-5);
        assert_eq!(steps.weight(0), Err(AccumulateError::Weight(0)));
    }
}
