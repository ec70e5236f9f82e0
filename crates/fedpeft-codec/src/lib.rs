//! Adapter tensors to bytes and back.
//!
//! An adapter is one flat run of `f32` values whose [`Layout`] says which tensor lies where. On the wire it
//! is those values, little-endian, in layout order, and nothing else: names and shapes are in the artifact
//! manifest that both sides hold, so the overhead over the raw payload is zero bytes.

mod layout;
mod scope;

pub use layout::{InvalidLayout, Layout, MAX_VALUES, TensorSpec};
pub use scope::{InvalidScope, Scope};

use std::sync::Arc;

use bytes::Bytes;

/// Bytes that are not an adapter of the expected layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The byte count is not four per value.
    #[error("adapter has {got} bytes, its layout of {values} f32 values needs {expected}")]
    Size {
        /// Bytes found.
        got: usize,
        /// Bytes needed.
        expected: usize,
        /// Values in the layout.
        values: usize,
    },
    /// A value is NaN or infinite.
    #[error("adapter value {index} of tensor {tensor} is {value}: only finite values are accepted")]
    NotFinite {
        /// Tensor the value belongs to.
        tensor: String,
        /// Index within that tensor, row-major.
        index: usize,
        /// `NaN`, `inf` or `-inf`.
        value: String,
    },
}

/// Encodes `values`, one run of `f32` in layout order, as little-endian bytes. One copy on a little-endian machine.
pub fn encode(values: &[f32]) -> Bytes {
    if cfg!(target_endian = "little") {
        Bytes::copy_from_slice(bytemuck::cast_slice(values))
    } else {
        values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>().into()
    }
}

/// [`encode`] without a copy, where the machine is little-endian: the values stay where they are.
pub fn encode_shared(values: Arc<Vec<f32>>) -> Bytes {
    struct Encoded(Arc<Vec<f32>>);
    impl AsRef<[u8]> for Encoded {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    if cfg!(target_endian = "little") { Bytes::from_owner(Encoded(values)) } else { encode(&values) }
}

/// Checks that `bytes` hold an adapter of `layout` with finite values only.
pub fn validate(bytes: &[u8], layout: &Layout) -> Result<(), CodecError> {
    let (got, values) = (bytes.len(), layout.values());
    let expected = values * size_of::<f32>();
    if got != expected {
        return Err(CodecError::Size { got, expected, values });
    }
    match not_finite(bytes) {
        None => Ok(()),
        Some((flat, value)) => {
            let (tensor, index) = layout.locate(flat);
            Err(CodecError::NotFinite { tensor: tensor.to_owned(), index, value: value.to_string() })
        }
    }
}

/// The first of some encoded values that is not finite, and its index.
pub fn not_finite(bytes: &[u8]) -> Option<(usize, f32)> {
    // A value is finite when its exponent is not all ones; testing bits in bulk vectorises, testing and
    // returning per value does not. The slow search for the culprit runs only when there is one.
    let infinite = bytes.chunks(1 << 16).any(|chunk| {
        chunk
            .as_chunks::<4>()
            .0
            .iter()
            .fold(false, |bad, b| bad | (u32::from_le_bytes(*b) & EXPONENT == EXPONENT))
    });
    if !infinite {
        return None;
    }
    let mut floats = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).enumerate();
    floats.find(|(_, value)| !value.is_finite())
}

const EXPONENT: u32 = 0x7f80_0000;

/// Decodes what [`encode`] wrote, after [`validate`].
pub fn decode(bytes: &[u8], layout: &Layout) -> Result<Vec<f32>, CodecError> {
    validate(bytes, layout)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(sizes: &[u64]) -> Layout {
        let specs =
            sizes.iter().enumerate().map(|(i, n)| TensorSpec { name: format!("t{i}"), shape: vec![*n] });
        Layout::new(specs.collect()).unwrap()
    }

    #[test]
    fn the_culprit_is_named() {
        let layout = layout(&[3, 4]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 7];
            values[5] = bad;
            let Err(CodecError::NotFinite { tensor, index, .. }) = decode(&encode(&values), &layout) else {
                panic!("{bad} was accepted")
            };
            assert_eq!((tensor.as_str(), index), ("t1", 2));
        }
    }

    proptest! {
        #[test]
        fn round_trip_is_bit_exact(values in proptest::collection::vec(any::<f32>(), 1..300)) {
            let layout = layout(&[values.len() as u64]);
            let decoded = decode(&encode(&values), &layout);
            prop_assert_eq!(encode_shared(Arc::new(values.clone())), encode(&values));
            if values.iter().all(|v| v.is_finite()) {
                let bits: Vec<_> = decoded.unwrap().iter().map(|v| v.to_bits()).collect();
                prop_assert_eq!(bits, values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
            } else {
                prop_assert!(matches!(decoded, Err(CodecError::NotFinite { .. })), "a value that is not finite was accepted");
            }
        }

        #[test]
        fn every_other_length_is_refused(len in 0usize..64) {
            let layout = layout(&[8]);
            prop_assert_eq!(validate(&vec![0; len], &layout).is_ok(), len == 32);
        }
    }
}
