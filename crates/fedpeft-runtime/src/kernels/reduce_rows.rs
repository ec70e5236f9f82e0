//! Sum over all axes but the last: the gradient of a bias.

use super::dispatch;

/// Rows that one part of a split sum covers. It does not depend on the number of threads, so neither does
/// the order of additions.
pub const ROWS_PER_PART: usize = 64;

/// Rows added to the sums at once: the sums cross the cache once per so many rows.
const BLOCK: usize = 8;

/// `sums = Σ rows of x`, rows having `sums.len()` values.
pub fn reduce_rows(x: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    let columns = sums.len();
    if columns == 0 {
        return;
    }
    dispatch(
        #[inline(always)]
        || {
            let mut blocks = x.chunks_exact(BLOCK * columns);
            for block in &mut blocks {
                add_block(block, columns, sums);
            }
            for row in blocks.remainder().chunks_exact(columns) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
        },
    );
}

#[inline(always)]
fn add_block(block: &[f32], columns: usize, sums: &mut [f32]) {
    let (half, other) = block.split_at(4 * columns);
    let ((a, b), (c, d)) = (pair(half, columns), pair(&half[2 * columns..], columns));
    let ((e, f), (g, h)) = (pair(other, columns), pair(&other[2 * columns..], columns));
    let rows = a.iter().zip(b).zip(c.iter().zip(d)).zip(e.iter().zip(f).zip(g.iter().zip(h)));
    for (sum, (((a, b), (c, d)), ((e, f), (g, h)))) in sums.iter_mut().zip(rows) {
        *sum += ((a + b) + (c + d)) + ((e + f) + (g + h));
    }
}

#[inline(always)]
fn pair(rows: &[f32], columns: usize) -> (&[f32], &[f32]) {
    let (first, rest) = rows.split_at(columns);
    (first, &rest[..columns])
}

/// Adds the sums of all parts, laid one after the other, in their order: `sums += Σ parts`.
pub fn combine_parts(parts: &[f32], sums: &mut [f32]) {
    for part in parts.chunks_exact(sums.len().max(1)) {
        for (sum, value) in sums.iter_mut().zip(part) {
            *sum += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_f64_whole_and_in_parts(
            columns in 1usize..70,
            rows in 0usize..200,
            seed in proptest::collection::vec(-2.0f32..2.0, 997),
        ) {
            let x: Vec<f32> = (0..rows * columns).map(|i| seed[i % seed.len()]).collect();
            let mut whole = vec![f32::NAN; columns];
            reduce_rows(&x, &mut whole);
            let mut combined = vec![0.0; columns];
            for part in x.chunks(ROWS_PER_PART * columns) {
                let mut sums = vec![f32::NAN; columns];
                reduce_rows(part, &mut sums);
                combine_parts(&sums, &mut combined);
            }
            for column in 0..columns {
                let want: f64 = x.iter().skip(column).step_by(columns).map(|v| f64::from(*v)).sum();
                prop_assert!((f64::from(whole[column]) - want).abs() < 2e-4);
                prop_assert!((f64::from(combined[column]) - want).abs() < 2e-4);
            }
        }
    }
}
