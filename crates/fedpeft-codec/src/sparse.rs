//! Which values are sent, and how that is said.
//!
//! Indices ascend. Few of them are sent as gaps, each the number of values left out before it as a LEB128
//! integer of up to 5 bytes; from one in eight on they are sent as one bit per value, lowest bit first.

use crate::CodecError;

/// Indices of the `count` values that are largest in magnitude, ascending; of equal ones the first.
pub(crate) fn largest(values: &[f32], count: usize) -> Vec<u32> {
    let magnitude = |value: &f32| value.to_bits() & 0x7fff_ffff;
    let mut magnitudes: Vec<u32> = values.iter().map(magnitude).collect();
    let Some(last) = count.min(values.len()).checked_sub(1) else { return Vec::new() };
    let (_, threshold, _) = magnitudes.select_nth_unstable_by(last, |a, b| b.cmp(a));
    let threshold = *threshold;
    let mut equal = count - values.iter().filter(|value| magnitude(value) > threshold).count();
    let mut indices = Vec::with_capacity(count);
    for (index, value) in values.iter().enumerate() {
        let magnitude = magnitude(value);
        if magnitude > threshold {
            indices.push(index as u32);
        } else if magnitude == threshold && equal > 0 {
            equal -= 1;
            indices.push(index as u32);
        }
    }
    indices
}

/// Most bytes that so many indices take.
pub(crate) fn most_bytes(count: usize, values: usize) -> usize {
    if is_bitmap(count, values) { values.div_ceil(8) } else { count.saturating_mul(5) }
}

fn is_bitmap(count: usize, values: usize) -> bool {
    count >= values.div_ceil(8)
}

/// Appends ascending `indices`.
pub(crate) fn write(indices: &[u32], values: usize, body: &mut Vec<u8>) {
    if is_bitmap(indices.len(), values) {
        let start = body.len();
        body.resize(start + values.div_ceil(8), 0);
        for index in indices {
            body[start + (index >> 3) as usize] |= 1 << (index & 7);
        }
        return;
    }
    let mut next = 0;
    for index in indices {
        let mut gap = index - next;
        while gap >= 0x80 {
            body.push(gap as u8 | 0x80);
            gap >>= 7;
        }
        body.push(gap as u8);
        next = index.wrapping_add(1);
    }
}

/// Reads `count` indices below `values`; what follows them is returned beside them.
pub(crate) fn read(body: &[u8], count: usize, values: usize) -> Result<(Vec<u32>, &[u8]), CodecError> {
    if is_bitmap(count, values) { read_bitmap(body, count, values) } else { read_gaps(body, count, values) }
}

fn read_bitmap(body: &[u8], count: usize, values: usize) -> Result<(Vec<u32>, &[u8]), CodecError> {
    let Some((bitmap, rest)) = body.split_at_checked(values.div_ceil(8)) else {
        return Err(CodecError::Body("its indices are cut off"));
    };
    let set: usize = bitmap.iter().map(|byte| byte.count_ones() as usize).sum();
    let beyond = !values.is_multiple_of(8) && bitmap.last().is_some_and(|last| last >> (values % 8) != 0);
    if set != count || beyond {
        return Err(CodecError::Body("its indices are not as many as declared"));
    }
    let mut indices = Vec::with_capacity(count);
    for (at, byte) in bitmap.iter().enumerate() {
        let mut left = *byte;
        while left != 0 {
            indices.push((at * 8) as u32 + left.trailing_zeros());
            left &= left - 1;
        }
    }
    Ok((indices, rest))
}

fn read_gaps(mut body: &[u8], count: usize, values: usize) -> Result<(Vec<u32>, &[u8]), CodecError> {
    // A gap takes a byte at least.
    if body.len() < count {
        return Err(CodecError::Body("its indices are cut off"));
    }
    let (mut indices, mut next) = (Vec::with_capacity(count), 0u64);
    for _ in 0..count {
        let (gap, rest) = read_integer(body)?;
        body = rest;
        let index = next + u64::from(gap);
        if index >= values as u64 {
            return Err(CodecError::Body("an index lies beyond the last value"));
        }
        indices.push(index as u32);
        next = index + 1;
    }
    Ok((indices, body))
}

/// Reads one LEB128 integer in its shortest form.
fn read_integer(body: &[u8]) -> Result<(u32, &[u8]), CodecError> {
    let mut integer = 0u64;
    for (at, byte) in body.iter().take(5).enumerate() {
        integer |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let shortest = at == 0 || *byte != 0;
            return match u32::try_from(integer) {
                Ok(integer) if shortest => Ok((integer, &body[at + 1..])),
                _ => Err(CodecError::Body("an index is not written as it should be")),
            };
        }
    }
    Err(CodecError::Body("its indices are cut off"))
}

/// The values at `indices`.
pub(crate) fn gather(values: &[f32], indices: &[u32]) -> Vec<f32> {
    indices.iter().map(|index| values[*index as usize]).collect()
}

/// So many zeros, with `kept` at `indices`.
pub(crate) fn scatter(kept: &[f32], indices: &[u32], values: usize) -> Vec<f32> {
    let mut dense = vec![0.0; values];
    for (value, index) in kept.iter().zip(indices) {
        dense[*index as usize] = *value;
    }
    dense
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_are_chosen_and_ties_go_to_the_first() {
        assert_eq!(largest(&[1.0, -3.0, 2.0, 3.0, 0.0], 2), [1, 3]);
        assert_eq!(largest(&[1.0, -1.0, 1.0, 1.0], 3), [0, 1, 2]);
        assert_eq!(largest(&[0.0, -0.0, 0.0], 1), [0]);
        assert_eq!(largest(&[0.5, 0.25], 2), [0, 1]);
    }

    fn indices() -> impl Strategy<Value = (Vec<u32>, usize)> {
        (1usize..3000).prop_flat_map(|values| {
            let few = proptest::collection::btree_set(0..values as u32, 1..=values.min(40));
            let many = proptest::collection::vec(any::<bool>(), values);
            let many = many.prop_map(|set| {
                let chosen = set.iter().enumerate().filter(|(_, set)| **set).map(|(at, _)| at as u32);
                chosen.chain(if set.contains(&true) { None } else { Some(0) }).collect()
            });
            let chosen = prop_oneof![few.prop_map(|set| set.into_iter().collect::<Vec<_>>()), many];
            (chosen, Just(values))
        })
    }

    proptest! {
        #[test]
        fn indices_round_trip((indices, values) in indices(), tail in proptest::collection::vec(any::<u8>(), 0..9)) {
            let mut body = Vec::new();
            write(&indices, values, &mut body);
            prop_assert!(body.len() <= most_bytes(indices.len(), values));
            body.extend_from_slice(&tail);
            let (got, rest) = read(&body, indices.len(), values).unwrap();
            prop_assert_eq!(got, indices);
            prop_assert_eq!(rest, &tail[..]);
        }

        #[test]
        fn hostile_indices_ascend_within_the_adapter_or_are_refused(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            count in 1usize..60,
            more in 0usize..2000,
        ) {
            let values = count + more;
            if let Ok((indices, rest)) = read(&body, count, values) {
                prop_assert_eq!(indices.len(), count);
                prop_assert!(indices.is_sorted_by(|a, b| a < b));
                prop_assert!((*indices.last().unwrap() as usize) < values);
                // There is one way only to write them.
                let mut again = Vec::new();
                write(&indices, values, &mut again);
                again.extend_from_slice(rest);
                prop_assert_eq!(again, body);
            }
        }

        #[test]
        fn the_largest_exceed_the_rest(
            values in proptest::collection::vec(-4i8..4, 1..200),
            share in 0.0f64..1.0,
        ) {
            let values: Vec<f32> = values.into_iter().map(f32::from).collect();
            let count = ((values.len() as f64 * share) as usize).max(1);
            let indices = largest(&values, count);
            prop_assert_eq!(indices.len(), count);
            let least = indices.iter().map(|at| values[*at as usize].abs()).fold(f32::INFINITY, f32::min);
            let left_out = (0..values.len() as u32).filter(|at| !indices.contains(at));
            let most = left_out.map(|at| values[at as usize].abs()).fold(0.0, f32::max);
            prop_assert!(most <= least);
        }
    }
}
