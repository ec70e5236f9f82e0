//! Gradient of exact GELU.

use super::{dispatch, math::gelu_derivative};

/// `dx = dy gelu'(x)`. All slices have one length; what exceeds the shortest is left alone.
pub fn gelu_grad(dy: &[f32], x: &[f32], dx: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || {
            for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                *dx = dy * gelu_derivative(*x);
            }
        },
    );
}

/// `dx = dx gelu'(x)`, likewise.
pub fn gelu_grad_in_place(x: &[f32], dx: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || {
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx *= gelu_derivative(*x);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_scalar_formula_at_every_length(
            pairs in proptest::collection::vec((-8.0f32..8.0, -3.0f32..3.0), 0..200),
        ) {
            let (x, dy): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let mut dx = vec![f32::NAN; x.len()];
            gelu_grad(&dy, &x, &mut dx);
            let mut again = dy.clone();
            gelu_grad_in_place(&x, &mut again);
            prop_assert_eq!(&again, &dx);
            for ((got, dy), x) in dx.iter().zip(&dy).zip(&x) {
                prop_assert_eq!(got.to_bits(), (dy * gelu_derivative(*x)).to_bits());
            }
        }
    }
}
