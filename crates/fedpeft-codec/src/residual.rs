//! What LoRA's factors do not hold of an update (FedEx-LoRA, Singhal et al., arXiv 2410.09432).
//!
//! The mean of products `B_i A_i` has more rank than the product of mean factors. Their difference is a matrix of its own
//! for each tuned layer, `MODULE.lora_residual.weight [outputs, inputs]`, in units of the product. It is no part of the
//! adapter: nobody trains it and no client sends it. All that is known of it follows from the adapter's layout.

use crate::{FACTOR_A, FACTOR_B, InvalidLayout, Layout, TensorSpec};

/// What the names of residuals end with.
pub const RESIDUAL: &str = ".lora_residual.weight";

/// The residuals of an adapter: one for each pair of factors `MODULE.lora_A.weight [rank, inputs]` and
/// `MODULE.lora_B.weight [outputs, rank]`, in the order of the former. None where there is no pair.
///
/// # Errors
/// [`InvalidLayout`] where they have too many values.
pub fn residuals(adapter: &Layout) -> Result<Option<Layout>, InvalidLayout> {
    let shape = |name: &str| {
        let spec = adapter.tensors().iter().find(|spec| spec.name == name)?;
        Some(&spec.shape[..])
    };
    let residual = |a: &TensorSpec| {
        let module = a.name.strip_suffix(FACTOR_A)?;
        let (&[rank, inputs], &[outputs, inner]) = (&a.shape[..], shape(&format!("{module}{FACTOR_B}"))?)
        else {
            return None;
        };
        let name = format!("{module}{RESIDUAL}");
        (rank == inner).then(|| TensorSpec { name, shape: vec![outputs, inputs] })
    };
    let tensors: Vec<TensorSpec> = adapter.tensors().iter().filter_map(residual).collect();
    if tensors.is_empty() { Ok(None) } else { Layout::new(tensors).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(tensors: &[(&str, &[u64])]) -> Layout {
        let spec =
            |(name, shape): &(&str, &[u64])| TensorSpec { name: (*name).into(), shape: shape.to_vec() };
        Layout::new(tensors.iter().map(spec).collect()).unwrap()
    }

    #[test]
    fn every_pair_of_factors_has_a_residual() {
        let adapter = layout(&[
            ("head.bias", &[3]),
            ("q.lora_A.weight", &[2, 5]),
            ("q.lora_B.weight", &[7, 2]),
            ("v.lora_B.weight", &[4, 1]),
            ("v.lora_A.weight", &[1, 6]),
            // Not a pair: A is frozen, or another rank.
            ("k.lora_B.weight", &[4, 1]),
            ("o.lora_A.weight", &[2, 5]),
            ("o.lora_B.weight", &[4, 3]),
        ]);
        let expected = layout(&[("q.lora_residual.weight", &[7, 5]), ("v.lora_residual.weight", &[4, 6])]);
        assert_eq!(residuals(&adapter), Ok(Some(expected)));
        assert_eq!(residuals(&layout(&[("head.bias", &[3])])), Ok(None));
    }

    #[test]
    fn what_nobody_has_memory_for_is_refused() {
        let adapter = layout(&[("q.lora_A.weight", &[1, 1 << 20]), ("q.lora_B.weight", &[1 << 20, 1])]);
        assert!(matches!(residuals(&adapter), Err(InvalidLayout::Size { .. })));
    }
}
