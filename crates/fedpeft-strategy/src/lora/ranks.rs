//! Clients with less rank than the global adapter (HetLoRA, Cho et al., arXiv 2401.06432; FlexLoRA).

use std::io::Write;

use fedpeft_codec::{Layout, TensorSpec};

use super::{FACTOR_A, FACTOR_B, read};
use crate::accumulator::{AccumulateError, Spool, SpoolError};

/// Writes `adapter`, of layout `from`, as one of layout `to`, which differs in the ranks of LoRA's factors alone: what there
/// is more of is dropped, what there is less of is zero. Memory is that of the largest tensor.
///
/// A client of rank `r` gets the first `r` rows of every `A` and columns of every `B`, the best factors of that rank where
/// [`super::ProductMean`] made them; what it returns is padded with zeros. It may as well train the padded adapter in
/// graphs of full rank: factors that are both zero have gradients that are zero. The scale `alpha / rank` has to be that of
/// the global adapter.
///
/// # Errors
/// [`AccumulateError::Layout`] where the layouts differ otherwise; what cannot be read or written.
pub fn fit_rank(
    adapter: &mut dyn Spool,
    from: &Layout,
    to: &Layout,
    out: &mut dyn Write,
) -> Result<(), SpoolError> {
    if from.tensors().len() != to.tensors().len()
        || from.tensors().iter().zip(to.tensors()).any(|(from, to)| !differ_in_rank(from, to))
    {
        return Err(AccumulateError::Layout.into());
    }
    for ((from, range), to) in from.ranges().zip(to.tensors()) {
        let values = read(adapter, &range)?;
        let (old, new) = (width(from), width(to));
        let mut fitted = vec![0.0; to.values()];
        for (row, values) in fitted.chunks_exact_mut(new).zip(values.chunks_exact(old)) {
            row.iter_mut().zip(values).for_each(|(fitted, value)| *fitted = *value);
        }
        let encoded: Vec<u8> = fitted.iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
        out.write_all(&encoded)?;
    }
    Ok(())
}

/// Values of one row.
fn width(spec: &TensorSpec) -> usize {
    spec.shape.last().map_or(1, |last| *last as usize)
}

fn differ_in_rank(from: &TensorSpec, to: &TensorSpec) -> bool {
    let same = |axis: usize| from.shape[axis] == to.shape[axis];
    let matrices = from.shape.len() == 2 && to.shape.len() == 2;
    from.name == to.name
        && (from.shape == to.shape
            || matrices && from.name.ends_with(FACTOR_A) && same(1)
            || matrices && from.name.ends_with(FACTOR_B) && same(0))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use fedpeft_codec::{decode, encode};

    use super::*;

    fn layout(rank: u64, bias: u64) -> Layout {
        let spec = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), shape: shape.to_vec() };
        let factors = [spec("q.lora_A.weight", &[rank, 2]), spec("q.lora_B.weight", &[3, rank])];
        Layout::new(factors.into_iter().chain([spec("head.bias", &[bias])]).collect()).unwrap()
    }

    fn fitted(values: &[f32], from: u64, to: u64) -> Vec<f32> {
        let mut out = Vec::new();
        fit_rank(&mut Cursor::new(encode(values)), &layout(from, 1), &layout(to, 1), &mut out).unwrap();
        decode(&out, &layout(to, 1)).unwrap()
    }

    #[test]
    fn ranks_are_cut_and_padded() {
        let full = [1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 7.0];
        let cut = [1.0, 2.0, 10.0, 30.0, 50.0, 7.0];
        assert_eq!(fitted(&full, 2, 1), cut);
        assert_eq!(fitted(&cut, 1, 2), [1.0, 2.0, 0.0, 0.0, 10.0, 0.0, 30.0, 0.0, 50.0, 0.0, 7.0]);
        assert_eq!(fitted(&full, 2, 2), full);
        let other = fit_rank(&mut Cursor::new(encode(&full)), &layout(2, 1), &layout(2, 2), &mut Vec::new());
        assert!(matches!(other, Err(SpoolError::Accumulate(AccumulateError::Layout))));
    }
}
