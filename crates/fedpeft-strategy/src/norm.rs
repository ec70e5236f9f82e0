//! How far an update went.

use std::io;

use crate::accumulator::Spool;

/// Independent sums, so that they can be added in vectors; their number is fixed, and with it every result.
pub(crate) const LANES: usize = 8;

/// Bytes read at once; a multiple of the lanes.
const CHUNK: usize = 1 << 18;

/// The L2 distance of two encoded adapters of one length, in `f64`; NaN if a value is.
pub fn distance(adapter: &[u8], base: &[u8]) -> f64 {
    let mut sums = [0.0; LANES];
    add_squares(&mut sums, adapter, base);
    sums.iter().sum::<f64>().sqrt()
}

/// [`distance`], to the bit, of adapters that are read in chunks from their first byte.
pub fn distance_spooled(adapter: &mut dyn Spool, base: &mut dyn Spool) -> io::Result<f64> {
    adapter.rewind()?;
    base.rewind()?;
    let (mut values, mut bases) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut sums = [0.0; LANES];
    loop {
        let read = fill(adapter, &mut values)?.min(fill(base, &mut bases)?);
        add_squares(&mut sums, &values[..read], &bases[..read]);
        if read < CHUNK {
            return Ok(sums.iter().sum::<f64>().sqrt());
        }
    }
}

/// Reads until `chunk` is full or nothing is left.
pub(crate) fn fill(from: &mut dyn Spool, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match from.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

pub(crate) fn add_squares(sums: &mut [f64; LANES], adapter: &[u8], base: &[u8]) {
    let (adapter, base) = (adapter.as_chunks::<4>().0, base.as_chunks::<4>().0);
    pulp::Arch::new().dispatch(|| add_squared_differences(sums, adapter, base));
}

/// Adds to each lane the squared differences of its values, in their order.
#[inline(always)]
fn add_squared_differences(sums: &mut [f64; LANES], left: &[[u8; 4]], right: &[[u8; 4]]) {
    let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<LANES>(), right.as_chunks::<LANES>());
    for (left, right) in left.iter().zip(right) {
        for lane in 0..LANES {
            sums[lane] += squared_difference(left[lane], right[lane]);
        }
    }
    for ((sum, left), right) in sums.iter_mut().zip(left_rest).zip(right_rest) {
        *sum += squared_difference(*left, *right);
    }
}

#[inline(always)]
fn squared_difference(left: [u8; 4], right: [u8; 4]) -> f64 {
    let difference = f64::from(f32::from_le_bytes(left)) - f64::from(f32::from_le_bytes(right));
    difference * difference
}

/// The squared L2 distance of two runs of values.
#[inline(always)]
pub(crate) fn squared_distance(left: &[[u8; 4]], right: &[[u8; 4]]) -> f64 {
    let mut sums = [0.0; LANES];
    add_squared_differences(&mut sums, left, right);
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use fedpeft_codec::encode;

    #[test]
    fn distances_are_euclidean() {
        let base = encode(&[1.0; 10]);
        let mut values = [1.0; 10];
        values[0] = 4.0;
        values[9] = -3.0;
        assert_eq!(distance(&encode(&values), &base), 5.0);
        values[3] = f32::NAN;
        assert!(distance(&encode(&values), &base).is_nan());
    }

    #[test]
    fn spooled_and_held_adapters_are_equally_far_apart() {
        for length in [0, 7, CHUNK / 4, CHUNK / 4 * 2 + 13] {
            let encoded =
                |seed: f32| encode(&(0..length).map(|at| (at as f32 * seed).sin()).collect::<Vec<_>>());
            let (adapter, base) = (encoded(0.1), encoded(0.7));
            let spooled = distance_spooled(&mut Cursor::new(&adapter), &mut Cursor::new(&base)).unwrap();
            assert_eq!(spooled.to_bits(), distance(&adapter, &base).to_bits());
        }
    }
}
