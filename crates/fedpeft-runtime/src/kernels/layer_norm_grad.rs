//! Gradient of layer normalisation with respect to its input.

use super::{LANES, dispatch, sum_lanes};

/// Rows that were normalised: the input and the statistics the forward pass kept.
#[derive(Clone, Copy, Debug)]
pub struct Normalized<'a> {
    /// Input, rows of `scale.len()` values.
    pub x: &'a [f32],
    /// Scale, one value per column.
    pub scale: &'a [f32],
    /// Mean of each row.
    pub mean: &'a [f32],
    /// Reciprocal of the deviation of each row.
    pub inv_std_dev: &'a [f32],
}

/// `dx = s (g - mean(g) - x̂ mean(g x̂))` per row, with `g = dy scale`, `x̂ = (x - mean) s` and `s` the
/// reciprocal deviation; plus `residual`, where there is one. Rows beyond the shortest slice are left alone.
pub fn layer_norm_grad(dy: &[f32], forward: Normalized<'_>, residual: Option<&[f32]>, dx: &mut [f32]) {
    let columns = forward.scale.len();
    if columns == 0 {
        return;
    }
    dispatch(
        #[inline(always)]
        || {
            let statistics = forward.mean.iter().zip(forward.inv_std_dev);
            let rows = dx.chunks_exact_mut(columns).zip(dy.chunks_exact(columns));
            let rows = rows.zip(forward.x.chunks_exact(columns)).zip(statistics);
            for (((dx, dy), x), (mean, inv_std_dev)) in rows {
                row(dy, x, forward.scale, *mean, *inv_std_dev, dx);
            }
            // They are still in the cache.
            if let Some(residual) = residual {
                for (dx, residual) in dx.iter_mut().zip(residual) {
                    *dx += residual;
                }
            }
        },
    );
}

/// `sums = Σ dy (x - mean) s` over rows of `sums.len()` values, of which these are the means and reciprocal deviations.
pub fn layer_norm_scale_grad(dy: &[f32], x: &[f32], [mean, inv_std_dev]: [&[f32]; 2], sums: &mut [f32]) {
    sums.fill(0.0);
    let columns = sums.len();
    if columns == 0 {
        return;
    }
    dispatch(
        #[inline(always)]
        || {
            let rows = dy.chunks_exact(columns).zip(x.chunks_exact(columns));
            for ((dy, x), (mean, inv_std_dev)) in rows.zip(mean.iter().zip(inv_std_dev)) {
                for ((sum, dy), x) in sums.iter_mut().zip(dy).zip(x) {
                    *sum = dy.mul_add((x - mean) * inv_std_dev, *sum);
                }
            }
        },
    );
}

#[inline(always)]
fn row(dy: &[f32], x: &[f32], scale: &[f32], mean: f32, inv_std_dev: f32, dx: &mut [f32]) {
    let (mut sums, mut products) = ([0.0; LANES], [0.0; LANES]);
    let ((dy_body, dy_tail), (x_body, x_tail)) = (dy.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    let (scale_body, scale_tail) = scale.as_chunks::<LANES>();
    for ((dy, x), scale) in dy_body.iter().zip(x_body).zip(scale_body) {
        for lane in 0..LANES {
            let g = dy[lane] * scale[lane];
            sums[lane] += g;
            products[lane] = g.mul_add((x[lane] - mean) * inv_std_dev, products[lane]);
        }
    }
    for (lane, ((dy, x), scale)) in dy_tail.iter().zip(x_tail).zip(scale_tail).enumerate() {
        let g = dy * scale;
        sums[lane] += g;
        products[lane] = g.mul_add((x - mean) * inv_std_dev, products[lane]);
    }
    let share = 1.0 / scale.len() as f32;
    let (mean_g, mean_product) = (sum_lanes(sums) * share, sum_lanes(products) * share);
    for (((dx, dy), x), scale) in dx.iter_mut().zip(dy).zip(x).zip(scale) {
        let centred = dy.mul_add(*scale, -mean_g);
        *dx = inv_std_dev * ((x - mean) * inv_std_dev).mul_add(-mean_product, centred);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The formula of the documentation, in f64.
    fn reference(dy: &[f64], x: &[f64], scale: &[f64], mean: f64, s: f64) -> Vec<f64> {
        let n = dy.len() as f64;
        let g: Vec<f64> = dy.iter().zip(scale).map(|(a, b)| a * b).collect();
        let xhat: Vec<f64> = x.iter().map(|x| (x - mean) * s).collect();
        let mean_g = g.iter().sum::<f64>() / n;
        let mean_product = g.iter().zip(&xhat).map(|(a, b)| a * b).sum::<f64>() / n;
        g.iter().zip(&xhat).map(|(g, x)| s * (g - mean_g - x * mean_product)).collect()
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|v| f64::from(*v)).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_f64(
            columns in 1usize..150,
            rows in 1usize..5,
            values in proptest::collection::vec(-3.0f32..3.0, 2 * 5 * 150 + 150),
        ) {
            let (dy, rest) = values.split_at(5 * 150);
            let (x, scale) = rest.split_at(5 * 150);
            let (dy, x, scale) = (&dy[..rows * columns], &x[..rows * columns], &scale[..columns]);
            let mean: Vec<f32> = x.chunks(columns).map(|r| r.iter().sum::<f32>() / columns as f32).collect();
            let inv_std_dev: Vec<f32> = x.chunks(columns).zip(&mean).map(|(row, mean)| {
                let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / columns as f32;
                1.0 / (variance + 1e-2).sqrt()
            }).collect();
            let mut dx = vec![f32::NAN; dy.len()];
            let forward = Normalized { x, scale, mean: &mean, inv_std_dev: &inv_std_dev };
            layer_norm_grad(dy, forward, None, &mut dx);
            for row in 0..rows {
                let range = row * columns..(row + 1) * columns;
                let want = reference(
                    &wide(&dy[range.clone()]), &wide(&x[range.clone()]), &wide(scale),
                    f64::from(mean[row]), f64::from(inv_std_dev[row]),
                );
                for (got, want) in dx[range].iter().zip(want) {
                    let tolerance = 2e-5 * f64::from(inv_std_dev[row]).max(1.0);
                    prop_assert!((f64::from(*got) - want).abs() < tolerance, "{} is not {}", got, want);
                }
            }
            let (mut more, mut sums) = (vec![f32::NAN; dy.len()], vec![f32::NAN; columns]);
            layer_norm_grad(dy, forward, Some(x), &mut more);
            prop_assert!(more.iter().zip(&dx).zip(x).all(|((more, dx), x)| more == &(dx + x)));
            layer_norm_scale_grad(dy, x, [&mean, &inv_std_dev], &mut sums);
            for (column, got) in sums.iter().enumerate() {
                let normal = |row: usize| {
                    (f64::from(x[row * columns + column]) - f64::from(mean[row])) * f64::from(inv_std_dev[row])
                };
                let want: f64 = (0..rows).map(|row| f64::from(dy[row * columns + column]) * normal(row)).sum();
                prop_assert!((f64::from(*got) - want).abs() < 2e-3, "{} is not {}", got, want);
            }
        }
    }
}
