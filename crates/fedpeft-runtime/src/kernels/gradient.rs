//! What happens to a gradient on its way into an optimizer's step, without a pass of its own.

use super::{LANES, dispatch};

/// The gradient that a step descends: `factor values + pull (parameters - anchor)`.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a> {
    /// As computed, possibly accumulated over micro-batches.
    pub values: &'a [f32],
    /// Mean over micro-batches and clipping.
    pub factor: f32,
    /// Strength of the proximal term.
    pub pull: f32,
    /// Where the proximal term pulls the parameters to; empty where there is no such term.
    pub anchor: &'a [f32],
}

impl<'a> From<&'a [f32]> for Gradient<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self { values, factor: 1.0, pull: 0.0, anchor: &[] }
    }
}

impl Gradient<'_> {
    /// Hands every parameter with its gradient and its state to `update`, which must be `#[inline(always)]`.
    #[inline(always)]
    pub(super) fn for_each<S>(
        self,
        parameters: &mut [f32],
        state: impl Iterator<Item = S>,
        mut update: impl FnMut(&mut f32, f32, S),
    ) {
        let Self { values, factor, pull, anchor } = self;
        if anchor.is_empty() {
            for ((p, g), state) in parameters.iter_mut().zip(values).zip(state) {
                update(p, factor * g, state);
            }
        } else {
            for (((p, g), a), state) in parameters.iter_mut().zip(values).zip(anchor).zip(state) {
                let g = pulled(factor, pull, *p, *g, *a);
                update(p, g, state);
            }
        }
    }
}

/// Squared Euclidean norm of the gradient, added up in f64.
pub fn squared_norm(gradient: Gradient<'_>, parameters: &[f32]) -> f64 {
    let Gradient { values, factor, pull, anchor } = gradient;
    dispatch(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; LANES];
            if anchor.is_empty() {
                let (body, tail) = values.as_chunks::<LANES>();
                for block in body {
                    for lane in 0..LANES {
                        add_square(&mut lanes[lane], factor * block[lane]);
                    }
                }
                for (lane, g) in lanes.iter_mut().zip(tail) {
                    add_square(lane, factor * g);
                }
            } else {
                let ((g_body, g_tail), (a_body, a_tail)) =
                    (values.as_chunks::<LANES>(), anchor.as_chunks::<LANES>());
                let (p_body, p_tail) = parameters.as_chunks::<LANES>();
                for ((p, g), a) in p_body.iter().zip(g_body).zip(a_body) {
                    for lane in 0..LANES {
                        add_square(&mut lanes[lane], pulled(factor, pull, p[lane], g[lane], a[lane]));
                    }
                }
                for (lane, ((p, g), a)) in lanes.iter_mut().zip(p_tail.iter().zip(g_tail).zip(a_tail)) {
                    add_square(lane, pulled(factor, pull, *p, *g, *a));
                }
            }
            lanes.iter().sum()
        },
    )
}

#[inline(always)]
fn pulled(factor: f32, pull: f32, parameter: f32, gradient: f32, anchor: f32) -> f32 {
    pull.mul_add(parameter - anchor, factor * gradient)
}

#[inline(always)]
fn add_square(sum: &mut f64, value: f32) {
    let value = f64::from(value);
    *sum = value.mul_add(value, *sum);
}

/// `sum += weight values`, or `sum = weight values` for the first of a sum, whatever `sum` holds.
pub fn accumulate(weight: f32, values: &[f32], first: bool, sum: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || {
            let pairs = sum.iter_mut().zip(values);
            if first {
                pairs.for_each(|(sum, value)| *sum = weight * value);
            } else {
                pairs.for_each(|(sum, value)| *sum = value.mul_add(weight, *sum));
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{SgdStep, sgd};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_step_and_its_norm_see_the_documented_gradient(
            values in proptest::collection::vec((-2.0f32..2.0, -2.0f32..2.0, -2.0f32..2.0), 0..200),
            factor in -2.0f32..2.0,
            pull in 0.0f32..2.0,
            pulled: bool,
        ) {
            let (p, rest): (Vec<f32>, Vec<(f32, f32)>) =
                values.into_iter().map(|(p, g, a)| (p, (g, a))).unzip();
            let (g, a): (Vec<f32>, Vec<f32>) = rest.into_iter().unzip();
            let anchor = if pulled { &a[..] } else { &[] };
            let gradient = Gradient { values: &g, factor, pull, anchor };
            let way = |i: usize| if pulled { f64::from(p[i]) - f64::from(a[i]) } else { 0.0 };
            let wanted: Vec<f64> = (0..p.len())
                .map(|i| f64::from(factor) * f64::from(g[i]) + f64::from(pull) * way(i))
                .collect();
            let norm: f64 = wanted.iter().map(|g| g * g).sum();
            prop_assert!((squared_norm(gradient, &p) - norm).abs() <= 1e-5 * (1.0 + norm));
            let mut moved = p.clone();
            let step = SgdStep { learning_rate: 1.0, momentum: 0.0, weight_decay: 0.0, nesterov: false };
            sgd(step, &mut moved, gradient, &mut vec![0.0; p.len()]);
            for ((moved, p), wanted) in moved.iter().zip(&p).zip(wanted) {
                prop_assert!((f64::from(p - moved) - wanted).abs() < 2e-6);
            }
        }
    }

    #[test]
    fn a_sum_forgets_what_was_there() {
        let mut sum = [f32::NAN; 3];
        accumulate(2.0, &[1.0, 2.0, 3.0], true, &mut sum);
        accumulate(0.5, &[4.0, 4.0, 4.0], false, &mut sum);
        assert_eq!(sum, [4.0, 6.0, 8.0]);
    }
}
