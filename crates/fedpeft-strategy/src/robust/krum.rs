//! Krum: the update that is nearest to most of the others.

use super::rows::Rows;
use crate::{accumulator::SpoolError, norm::squared_distance};

/// Most updates: the distances of every two of them take 64 MiB.
pub(super) const MOST: u32 = 4096;

/// The places of the `keep` updates with the lowest scores, ascending.
pub(super) fn best(rows: &mut Rows<'_>, byzantine: u32, keep: u32) -> Result<Vec<usize>, SpoolError> {
    let (squares, count) = (squared_distances(rows)?, rows.count());
    let neighbours = count.saturating_sub(byzantine as usize + 2);
    let mut scores: Vec<_> = (0..count).map(|at| (score(&squares, count, at, neighbours), at)).collect();
    scores.sort_by(|(left, i), (right, j)| left.total_cmp(right).then(i.cmp(j)));
    scores.truncate(keep.max(1) as usize);
    let mut kept: Vec<_> = scores.into_iter().map(|(_, at)| at).collect();
    kept.sort_unstable();
    Ok(kept)
}

/// Where the distance of two updates is, the later one first.
fn pair(later: usize, earlier: usize) -> usize {
    later * (later - 1) / 2 + earlier
}

/// The squared distance of every update to all before it.
fn squared_distances(rows: &mut Rows<'_>) -> Result<Vec<f64>, SpoolError> {
    let mut squares = vec![0.0; pair(rows.count(), 0)];
    rows.each_block(|block| {
        pulp::Arch::new().dispatch(|| {
            for (later, left) in block.rows().enumerate() {
                let squares = &mut squares[pair(later.max(1), 0)..];
                for (square, right) in squares.iter_mut().zip(block.rows().take(later)) {
                    *square += squared_distance(left, right);
                }
            }
        });
        Ok(())
    })?;
    Ok(squares)
}

/// The sum of the least squared distances of an update, from the least on.
fn score(squares: &[f64], count: usize, at: usize, neighbours: usize) -> f64 {
    let others = (0..count).filter(|other| *other != at);
    let mut distances: Vec<_> = others.map(|other| squares[pair(at.max(other), at.min(other))]).collect();
    distances.sort_unstable_by(f64::total_cmp);
    distances.iter().take(neighbours).sum()
}
