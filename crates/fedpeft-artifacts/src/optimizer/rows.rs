//! How optimizer graphs join tensors: each begins a row of its own, and zeros fill its last row up.
//!
//! CUDA's `Concat` and `Split` write a table with an entry for each index of their axis on the host and copy it to the
//! device, in every run: over rows it is 128 times smaller than over values, where it took most of a step.

use fedpeft_codec::Layout;

/// Values of a row: a divisor of the widths that models have.
pub const ROW: usize = 128;

/// Rows that `values` values take.
pub fn rows(values: usize) -> usize {
    values.div_ceil(ROW)
}

/// Rows that all tensors of `layout` take.
pub fn total(layout: &Layout) -> usize {
    layout.tensors().iter().map(|tensor| rows(tensor.values())).sum()
}

/// The joined rows of the tensors that lie in `flat` one behind the other.
///
/// `flat` has as many values as `layout`; what is missing reads as zero.
pub fn join(layout: &Layout, flat: &[f32]) -> Vec<f32> {
    let mut joined = Vec::with_capacity(total(layout) * ROW);
    for (_, range) in layout.ranges() {
        joined.extend_from_slice(flat.get(range).unwrap_or_default());
        joined.resize(joined.len().next_multiple_of(ROW), 0.0);
    }
    joined.resize(total(layout) * ROW, 0.0);
    joined
}

/// The tensors of joined rows one behind the other: the reverse of [`join`].
pub fn part(layout: &Layout, joined: &[f32]) -> Vec<f32> {
    let mut flat = Vec::with_capacity(layout.values());
    let mut rest = joined;
    for tensor in layout.tensors() {
        let (own, after) = rest.split_at((rows(tensor.values()) * ROW).min(rest.len()));
        flat.extend_from_slice(&own[..tensor.values().min(own.len())]);
        rest = after;
    }
    flat
}

#[cfg(test)]
mod tests {
    use fedpeft_codec::TensorSpec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_joined_is_parted_again(sizes in prop::collection::vec(1u64..400, 1..6)) {
            let spec = |(i, size): (usize, &u64)| TensorSpec { name: format!("t{i}"), shape: [*size].into() };
            let layout = Layout::new(sizes.iter().enumerate().map(spec).collect()).unwrap();
            let flat: Vec<f32> = (1..=layout.values()).map(|i| i as f32).collect();
            let joined = join(&layout, &flat);
            prop_assert_eq!(joined.len(), total(&layout) * ROW);
            prop_assert_eq!(joined.iter().filter(|value| **value != 0.0).count(), flat.len());
            prop_assert_eq!(part(&layout, &joined), flat);
        }
    }
}
