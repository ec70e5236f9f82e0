//! Values as floats of two or four bytes, in the order of their values or, for a compressor, byte by byte: first
//! the lowest byte of every value, then the next, up to the one with sign and exponent, which repeats itself most.

use bytemuck::cast_slice;
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::CodecError;

/// Appends elements of `W` bytes; `split` into their bytes for a compressor.
pub(crate) fn put<const W: usize>(bytes: &[u8], split: bool, body: &mut Vec<u8>) {
    if !split {
        return body.extend_from_slice(bytes);
    }
    let elements = bytes.as_chunks::<W>().0;
    for plane in 0..W {
        body.extend(elements.iter().map(|element| element[plane]));
    }
}

/// Reads `count` elements that [`put`] wrote, which must be all there is.
pub(crate) fn take<const W: usize>(
    body: &[u8],
    count: usize,
    split: bool,
) -> Result<Vec<[u8; W]>, CodecError> {
    if body.len() != count.saturating_mul(W) {
        return Err(CodecError::Body("its values are not as many as declared"));
    }
    if !split {
        return Ok(body.as_chunks::<W>().0.to_vec());
    }
    let mut elements = vec![[0; W]; count];
    for (at, plane) in body.chunks_exact(count.max(1)).enumerate() {
        for (element, byte) in elements.iter_mut().zip(plane) {
            element[at] = *byte;
        }
    }
    Ok(elements)
}

/// Values as `f32`.
pub(crate) fn fp32(elements: &[[u8; 4]]) -> Vec<f32> {
    elements.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Rounds to a two-byte format, ties to even. The index of a value beyond its range, if there is one.
pub(crate) fn narrow<H: Narrow>(values: &[f32]) -> Result<Vec<u8>, usize>
where
    [H]: HalfFloatSliceExt,
{
    let mut narrowed = vec![H::default(); values.len()];
    narrowed.convert_from_f32_slice(values);
    let bits = narrowed.reinterpret_cast();
    if bits.iter().fold(false, |beyond, bits| beyond | (bits & H::EXPONENT == H::EXPONENT))
        && let Some(index) = bits.iter().position(|bits| bits & H::EXPONENT == H::EXPONENT)
    {
        return Err(index);
    }
    if cfg!(target_endian = "little") {
        Ok(cast_slice(bits).to_vec())
    } else {
        Ok(bits.iter().flat_map(|bits| bits.to_le_bytes()).collect())
    }
}

/// Undoes [`narrow`], but for its rounding.
pub(crate) fn widen<H: Narrow>(elements: &[[u8; 2]]) -> Vec<f32>
where
    [H]: HalfFloatSliceExt,
{
    let mut narrowed = vec![H::default(); elements.len()];
    for (bits, bytes) in narrowed.reinterpret_cast_mut().iter_mut().zip(elements) {
        *bits = u16::from_le_bytes(*bytes);
    }
    let mut values = vec![0.0; elements.len()];
    narrowed.convert_to_f32_slice(&mut values);
    values
}

/// A float of two bytes.
pub(crate) trait Narrow: Copy + Default {
    /// Bits of the exponent: all of them are set in what is not finite.
    const EXPONENT: u16;
}

impl Narrow for f16 {
    const EXPONENT: u16 = 0x7c00;
}

impl Narrow for bf16 {
    const EXPONENT: u16 = 0x7f80;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn planes_go_from_low_to_high() {
        let mut body = Vec::new();
        put::<2>(&[1, 2, 3, 4, 5, 6], true, &mut body);
        assert_eq!(body, [1, 3, 5, 2, 4, 6]);
        assert_eq!(take::<2>(&body, 3, true).unwrap(), [[1, 2], [3, 4], [5, 6]]);
        assert!(take::<2>(&body, 2, true).is_err() && take::<4>(&body, 1, false).is_err());
    }

    #[test]
    fn what_is_too_large_is_found() {
        assert_eq!(narrow::<f16>(&[1.0, 65_504.0, -65_520.0]), Err(2));
        assert_eq!(narrow::<bf16>(&[1.0, f32::MAX]), Err(1));
        assert!(narrow::<bf16>(&[65_520.0, 3.38e38]).is_ok());
    }

    proptest! {
        #[test]
        fn errors_are_those_of_a_rounding(values in proptest::collection::vec(-65_504f32..65_504.0, 1..100), shift in 0i32..40) {
            let values: Vec<f32> = values.into_iter().map(|value| value * 2f32.powi(-shift)).collect();
            let half = widen::<f16>(narrow::<f16>(&values).unwrap().as_chunks().0);
            let brain = widen::<bf16>(narrow::<bf16>(&values).unwrap().as_chunks().0);
            for ((value, half), brain) in values.iter().zip(half).zip(brain) {
                // Half a unit in the last of 11 and 8 bits; below 2^-14 those of fp16 are fixed.
                prop_assert!((value - half).abs() <= (value.abs() * 2f32.powi(-11)).max(2f32.powi(-25)));
                prop_assert!((value - brain).abs() <= value.abs() * 2f32.powi(-8));
            }
        }
    }
}
