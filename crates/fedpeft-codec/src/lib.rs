//! Adapter tensors to bytes and back.
//!
//! An adapter is one flat run of `f32` values whose [`Layout`] says which tensor lies where. Plain, it is on the
//! wire those values, little-endian, in layout order, and nothing else: names and shapes are in the artifact
//! manifest that both sides hold, so the overhead over the raw payload is zero bytes ([`encode`], [`decode`]).
//!
//! A [`Pipeline`] makes it smaller: [`Codec`] puts changes, sparsification, fewer bits per value and zstd
//! together. Its bytes begin with a header that says how to read them.
//!
//! Values that are NaN or infinite are an error on both sides, always: they would make every mean useless.
//! Bytes of strangers are read with no more memory than a few times the adapter's own size.

mod codec;
mod delta;
mod error;
mod floats;
mod header;
mod integers;
mod layout;
mod rank;
mod read;
mod residual;
mod scope;
mod seed;
mod sparse;
mod squeeze;
mod write;

pub use codec::{Codec, describe};
pub use delta::Base;
pub use error::CodecError;
pub use fedpeft_protocol::pipeline::{InvalidPipeline, Pipeline};
pub use layout::{InvalidLayout, Layout, MAX_VALUES, TensorSpec};
pub use rank::{FACTOR_A, FACTOR_B, LowRank, decode_update, least_plain_bytes};
pub use residual::{RESIDUAL, residuals};
pub use scope::{InvalidScope, Scope};
pub use seed::Seed;

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;

/// The bytes of `values`, one run of `f32` in layout order, little-endian. No copy on a little-endian machine.
pub fn as_bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }
}

/// Encodes `values` as [`as_bytes`], with one copy.
pub fn encode(values: &[f32]) -> Bytes {
    Bytes::copy_from_slice(&as_bytes(values))
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

/// What [`decode`] gives, without a copy where the bytes lie as this machine's `f32` do.
pub fn view<'a>(bytes: &'a [u8], layout: &Layout) -> Result<Cow<'a, [f32]>, CodecError> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(values) if cfg!(target_endian = "little") => {
            validate(bytes, layout).map(|()| Cow::Borrowed(values))
        }
        _ => decode(bytes, layout).map(Cow::Owned),
    }
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

    #[test]
    fn a_view_is_no_copy() {
        let (layout, values) = (layout(&[3]), [1.0f32, -2.0, 3.0]);
        let bytes = as_bytes(&values);
        let view = view(&bytes, &layout).unwrap();
        assert_eq!(*view, values);
        assert_eq!(matches!(view, Cow::Borrowed(_)), cfg!(target_endian = "little"));
        let unaligned = [&[0][..], &bytes].concat();
        assert_eq!(*super::view(&unaligned[1..], &layout).unwrap(), values);
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
