//! Gradient of softmax over the last axis.

use super::{LANES, dispatch, sum_lanes};

/// `dx = y (dy - sum(dy y))` per row of `columns` values, `y` being softmax's output. Rows beyond the
/// shortest slice are left alone.
pub fn softmax_grad(dy: &[f32], y: &[f32], columns: usize, dx: &mut [f32]) {
    if columns == 0 {
        return;
    }
    dispatch(
        #[inline(always)]
        || {
            let rows = dx.chunks_exact_mut(columns).zip(dy.chunks_exact(columns));
            for ((dx, dy), y) in rows.zip(y.chunks_exact(columns)) {
                row(dy, y, dx);
            }
        },
    );
}

#[inline(always)]
fn row(dy: &[f32], y: &[f32], dx: &mut [f32]) {
    let mut products = [0.0; LANES];
    let ((dy_body, dy_tail), (y_body, y_tail)) = (dy.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (dy, y) in dy_body.iter().zip(y_body) {
        for lane in 0..LANES {
            products[lane] = dy[lane].mul_add(y[lane], products[lane]);
        }
    }
    for (lane, (dy, y)) in dy_tail.iter().zip(y_tail).enumerate() {
        products[lane] = dy.mul_add(*y, products[lane]);
    }
    let product = sum_lanes(products);
    for ((dx, dy), y) in dx.iter_mut().zip(dy).zip(y) {
        *dx = y * (dy - product);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_f64(
            columns in 1usize..120,
            rows in 1usize..5,
            values in proptest::collection::vec((0.0f32..1.0, -3.0f32..3.0), 5 * 120),
        ) {
            let (mut y, dy): (Vec<f32>, Vec<f32>) = values[..rows * columns].iter().copied().unzip();
            for row in y.chunks_mut(columns) {
                let sum: f32 = row.iter().sum::<f32>() + 1e-3;
                row.iter_mut().for_each(|v| *v /= sum);
            }
            let mut dx = vec![f32::NAN; y.len()];
            softmax_grad(&dy, &y, columns, &mut dx);
            for ((got, dy), y) in dx.chunks(columns).zip(dy.chunks(columns)).zip(y.chunks(columns)) {
                let sum: f64 = dy.iter().zip(y).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                for ((got, dy), y) in got.iter().zip(dy).zip(y) {
                    let want = f64::from(*y) * (f64::from(*dy) - sum);
                    prop_assert!((f64::from(*got) - want).abs() < 2e-6, "{} is not {}", got, want);
                }
            }
        }
    }
}
