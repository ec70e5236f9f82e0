//! The middle of every coordinate: medians and trimmed means.

use super::rows::{Block, Rows};
use crate::accumulator::SpoolError;

/// Coordinates that are sorted together, one in each lane of a vector.
const LANES: usize = 16;

/// Gives the mean of every coordinate without its `cut` smallest and `cut` largest values to `each`, in chunks. The rest
/// is added from the smallest on.
pub(super) fn middle(
    rows: &mut Rows<'_>,
    cut: usize,
    each: &mut dyn FnMut(&[f64]) -> Result<(), SpoolError>,
) -> Result<(), SpoolError> {
    let mut column = vec![[0; LANES]; rows.count()];
    rows.write(each, |block, means| {
        pulp::Arch::new().dispatch(|| {
            for (group, means) in means.chunks_mut(LANES).enumerate() {
                load(block, group * LANES, means.len(), &mut column);
                sort(&mut column);
                average(&column[cut..column.len() - cut], means);
            }
        });
    })
}

/// Copies the values from `first` on of every row, as keys.
#[inline(always)]
fn load(block: &Block<'_>, first: usize, count: usize, column: &mut [[i32; LANES]]) {
    for (keys, row) in column.iter_mut().zip(block.rows()) {
        for (key, value) in keys.iter_mut().zip(&row[first..first + count]) {
            *key = flipped(i32::from_le_bytes(*value));
        }
    }
}

/// Integers that order as floats do, all but their sign inverted where it is negative; and back again.
#[inline(always)]
fn flipped(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & i32::MAX)
}

/// Sorts every lane with Batcher's merge exchange (Knuth, The Art of Computer Programming, 5.2.2, algorithm M): which
/// rows are compared depends on their number alone, so that lanes do not wait for each other.
#[inline(always)]
fn sort(column: &mut [[i32; LANES]]) {
    let most = column.len().next_power_of_two() / 2;
    let mut p = most;
    while p > 0 {
        let (mut q, mut r, mut d) = (most, 0, p);
        loop {
            for at in (0..column.len() - d).filter(|at| at & p == r) {
                let (left, right) = column.split_at_mut(at + d);
                exchange(&mut left[at], &mut right[0]);
            }
            if q == p {
                break;
            }
            (d, q, r) = (q - p, q / 2, p);
        }
        p /= 2;
    }
}

#[inline(always)]
fn exchange(low: &mut [i32; LANES], high: &mut [i32; LANES]) {
    for (low, high) in low.iter_mut().zip(high) {
        (*low, *high) = ((*low).min(*high), (*low).max(*high));
    }
}

#[inline(always)]
fn average(column: &[[i32; LANES]], means: &mut [f64]) {
    let mut sums = [0.0; LANES];
    for keys in column {
        for (sum, key) in sums.iter_mut().zip(keys) {
            *sum += f64::from(f32::from_bits(flipped(*key).cast_unsigned()));
        }
    }
    for (mean, sum) in means.iter_mut().zip(sums) {
        *mean = sum / column.len() as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network that sorts all zeros and ones sorts everything (Knuth, 5.3.4, theorem Z).
    #[test]
    fn the_network_sorts_all_zeros_and_ones() {
        for count in 1..=16usize {
            for cases in (0..1u32 << count).step_by(LANES) {
                let bit = |lane: usize, row: usize| ((cases + lane as u32) >> row & 1) as i32;
                let mut column: Vec<[i32; LANES]> =
                    (0..count).map(|row| std::array::from_fn(|lane| bit(lane, row))).collect();
                sort(&mut column);
                assert!(column.is_sorted_by(|a, b| a.iter().zip(b).all(|(a, b)| a <= b)), "{count} {cases}");
                for lane in 0..LANES {
                    let ones = (0..count).map(|row| bit(lane, row)).sum::<i32>();
                    assert_eq!(column.iter().map(|keys| keys[lane]).sum::<i32>(), ones);
                }
            }
        }
    }

    #[test]
    fn keys_order_as_floats_do() {
        let values = [-65_536.0, -1.5, -1e-40, -0.0, 0.0, 1e-40, 0.1, 65_536.0f32];
        let keys = values.map(|value| flipped(value.to_bits().cast_signed()));
        assert!(keys.is_sorted());
        assert_eq!(
            keys.map(|key| f32::from_bits(flipped(key).cast_unsigned()).to_bits()),
            values.map(f32::to_bits)
        );
    }
}
