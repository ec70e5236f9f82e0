//! One step of stochastic gradient descent.

use super::{Gradient, dispatch};

/// Constants of a step, see [`fedpeft_protocol::run::OptimizerSpec::Sgd`].
#[derive(Clone, Copy, Debug)]
pub struct SgdStep {
    /// Learning rate.
    pub learning_rate: f32,
    /// Momentum.
    pub momentum: f32,
    /// L2 penalty.
    pub weight_decay: f32,
    /// Nesterov's form.
    pub nesterov: bool,
}

/// Updates `parameters` and `velocity` in place. A velocity of zeros makes the first step `v = d`.
pub fn sgd(step: SgdStep, parameters: &mut [f32], gradient: Gradient<'_>, velocity: &mut [f32]) {
    let SgdStep { learning_rate, momentum, weight_decay, nesterov } = step;
    dispatch(
        #[inline(always)]
        || {
            gradient.for_each(
                parameters,
                velocity.iter_mut(),
                #[inline(always)]
                |p, g, v| {
                    let d = p.mul_add(weight_decay, g);
                    *v = v.mul_add(momentum, d);
                    let direction = if nesterov { v.mul_add(momentum, d) } else { *v };
                    *p = direction.mul_add(-learning_rate, *p);
                },
            );
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps of the documented recurrence, in f64, on one value.
    fn reference(step: SgdStep, mut p: f64, gradients: &[f64]) -> Vec<f64> {
        let (lr, mu, wd) =
            (f64::from(step.learning_rate), f64::from(step.momentum), f64::from(step.weight_decay));
        let mut v = None;
        gradients
            .iter()
            .map(|g| {
                let d = g + wd * p;
                let next = v.map_or(d, |v: f64| mu * v + d);
                v = Some(next);
                p -= lr * if step.nesterov { d + mu * next } else { next };
                p
            })
            .collect()
    }

    #[test]
    fn follows_the_recurrence() {
        let gradients = [0.3, -0.7, 1.1, 0.05];
        for (momentum, weight_decay, nesterov) in
            [(0.0, 0.0, false), (0.9, 0.0, false), (0.9, 1e-2, false), (0.9, 1e-2, true)]
        {
            let step = SgdStep { learning_rate: 0.1, momentum, weight_decay, nesterov };
            let (mut p, mut v) = ([0.5; 37], [0.0; 37]);
            for (g, want) in gradients.iter().zip(reference(step, 0.5, &gradients)) {
                sgd(step, &mut p, [*g as f32; 37][..].into(), &mut v);
                assert!(p.iter().all(|p| (f64::from(*p) - want).abs() < 1e-6), "{p:?} is not {want}");
            }
        }
    }

    #[test]
    fn known_values() {
        // By hand: d = 0.3 + 0.01 * 0.5 = 0.305, v = 0.305, p = 0.5 - 0.1 (0.305 + 0.9 * 0.305) = 0.44205.
        let step = SgdStep { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.01, nesterov: true };
        let (mut p, mut v) = ([0.5], [0.0]);
        sgd(step, &mut p, [0.3][..].into(), &mut v);
        assert!((p[0] - 0.442_05).abs() < 1e-7, "{}", p[0]);
    }
}
