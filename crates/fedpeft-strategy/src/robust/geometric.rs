//! The geometric median. Every iterate is a mean of the updates with some weights, so that the weights are all that
//! is kept of it.

use super::rows::{Block, Rows, add_weighted};
use crate::{accumulator::SpoolError, norm::LANES};

/// What smoothing is at least, so that no weight is infinite.
const LEAST_SMOOTHING: f64 = 1e-12;

/// The weights of the updates, 1 in all, after `iterations` of the smoothed Weiszfeld algorithm.
pub(super) fn weights(rows: &mut Rows<'_>, iterations: u32, smoothing: f64) -> Result<Vec<f64>, SpoolError> {
    let shares = rows.shares();
    let mut weights = shares.clone();
    for _ in 0..iterations {
        let squares = squared_distances(rows, &weights)?;
        let pulls = shares.iter().zip(&squares);
        weights.clear();
        weights
            .extend(pulls.map(|(share, square)| share / square.sqrt().max(smoothing).max(LEAST_SMOOTHING)));
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    Ok(weights)
}

/// The squared distance of every update to the mean with these weights.
fn squared_distances(rows: &mut Rows<'_>, weights: &[f64]) -> Result<Vec<f64>, SpoolError> {
    let (mut squares, mut mean) = (vec![0.0; rows.count()], Vec::new());
    rows.each_block(|block| {
        mean.clear();
        mean.resize(block.width(), 0.0);
        pulp::Arch::new().dispatch(|| {
            add_weighted(block, weights, &mut mean);
            add_squares(block, &mean, &mut squares);
        });
        Ok(())
    })?;
    Ok(squares)
}

#[inline(always)]
fn add_squares(block: &Block<'_>, mean: &[f64], squares: &mut [f64]) {
    for (square, row) in squares.iter_mut().zip(block.rows()) {
        *square += squared_distance(row, mean);
    }
}

/// In independent sums, as in [`crate::distance`].
#[inline(always)]
fn squared_distance(row: &[[u8; 4]], mean: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let ((row, row_rest), (mean, mean_rest)) = (row.as_chunks::<LANES>(), mean.as_chunks::<LANES>());
    let squared = |value: [u8; 4], mean: f64| (f64::from(f32::from_le_bytes(value)) - mean).powi(2);
    for (values, means) in row.iter().zip(mean) {
        for lane in 0..LANES {
            sums[lane] += squared(values[lane], means[lane]);
        }
    }
    for ((sum, value), mean) in sums.iter_mut().zip(row_rest).zip(mean_rest) {
        *sum += squared(*value, *mean);
    }
    sums.iter().sum()
}
