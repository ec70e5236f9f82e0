//! One step of AdamW.

use super::{Gradient, dispatch};

/// Constants of a step, see [`fedpeft_protocol::run::OptimizerSpec::Adamw`].
#[derive(Clone, Copy, Debug)]
pub struct AdamwStep {
    /// Learning rate.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Term that keeps the denominator from zero.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// `1 - beta1^t` at step `t`, counted from 1.
    pub bias1: f32,
    /// `1 - beta2^t` likewise.
    pub bias2: f32,
}

/// Updates `parameters` and both moments in place; the moments start as zeros.
pub fn adamw(
    step: AdamwStep,
    parameters: &mut [f32],
    gradient: Gradient<'_>,
    first: &mut [f32],
    second: &mut [f32],
) {
    let AdamwStep { learning_rate, beta1, beta2, epsilon, weight_decay, bias1, bias2 } = step;
    let keep = 1.0 - learning_rate * weight_decay;
    let step_size = learning_rate / bias1;
    let inv_sqrt_bias2 = 1.0 / bias2.sqrt();
    let (rest1, rest2) = (1.0 - beta1, 1.0 - beta2);
    dispatch(
        #[inline(always)]
        || {
            gradient.for_each(
                parameters,
                first.iter_mut().zip(second.iter_mut()),
                #[inline(always)]
                |p, g, (m, v)| {
                    *m = m.mul_add(beta1, rest1 * g);
                    *v = v.mul_add(beta2, rest2 * g * g);
                    let denominator = v.sqrt().mul_add(inv_sqrt_bias2, epsilon);
                    *p = (*m / denominator).mul_add(-step_size, *p * keep);
                },
            );
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(t: i32) -> AdamwStep {
        AdamwStep {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            bias1: (1.0 - 0.9f64.powi(t)) as f32,
            bias2: (1.0 - 0.999f64.powi(t)) as f32,
        }
    }

    #[test]
    fn follows_the_recurrence() {
        let gradients = [0.3, -0.7, 1.1, 0.05, -2.0];
        let (mut p, mut m, mut v) = ([0.5; 21], [0.0; 21], [0.0; 21]);
        let (mut p64, mut m64, mut v64) = (0.5f64, 0.0f64, 0.0f64);
        for (t, g) in (1..).zip(gradients) {
            adamw(at(t), &mut p, [g as f32; 21][..].into(), &mut m, &mut v);
            p64 *= 1.0 - 1e-2 * 0.1;
            m64 = 0.9 * m64 + 0.1 * g;
            v64 = 0.999 * v64 + 0.001 * g * g;
            let denominator = (v64 / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8;
            p64 -= 1e-2 * m64 / (1.0 - 0.9f64.powi(t)) / denominator;
            assert!(p.iter().all(|p| (f64::from(*p) - p64).abs() < 1e-6), "{p:?} is not {p64}");
        }
    }

    #[test]
    fn known_values() {
        // By hand: the first step moves by the learning rate against the sign of the gradient, after decay:
        // 0.5 (1 - 0.01 * 0.1) - 0.01 = 0.4895.
        let (mut p, mut m, mut v) = ([0.5], [0.0], [0.0]);
        adamw(at(1), &mut p, [0.3][..].into(), &mut m, &mut v);
        assert!((p[0] - 0.4895).abs() < 1e-6, "{}", p[0]);
    }

    #[test]
    fn a_zero_gradient_moves_nothing_but_decay() {
        let (mut p, mut m, mut v) = ([0.5], [0.0], [0.0]);
        adamw(at(1), &mut p, [0.0][..].into(), &mut m, &mut v);
        assert!((p[0] - 0.4995).abs() < 1e-7, "{}", p[0]);
    }
}
