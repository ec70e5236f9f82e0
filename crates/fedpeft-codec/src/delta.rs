//! Changes against a base that both sides have.
//!
//! Where nothing is lost afterwards a change must give back every bit, which `base + (value - base)` does not.
//! It is then the difference of the two bit patterns as integers, in the order of the floats they stand for:
//! the number of floats between base and value. Close values have small differences, across powers of two and
//! zero as well, where an exclusive or has not. Where something is lost anyway it is the plain difference,
//! whose size means something to a quantiser.

use std::borrow::Cow;

use bytemuck::cast_slice;
use fedpeft_protocol::Digest;

/// The adapter that changes refer to.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    values: &'a [f32],
    tag: [u8; 8],
}

impl<'a> Base<'a> {
    /// Takes the values that both sides have, bit for bit: of a global adapter that was sent with losses, what
    /// its receivers made of it. Hashes them once.
    pub fn new(values: &'a [f32]) -> Self {
        let mut tag = [0; 8];
        tag.copy_from_slice(&Digest::of(crate::as_bytes(values)).as_bytes()[..8]);
        Self { values, tag }
    }

    /// Its values.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// What tells it from others.
    pub(crate) fn tag(&self) -> [u8; 8] {
        self.tag
    }
}

/// Differences of bit patterns, the sign in the lowest bit.
pub(crate) fn bit_differences(values: &[f32], base: &[f32]) -> Vec<u32> {
    pulp::Arch::new().dispatch(|| {
        let differences = values.iter().zip(base);
        differences.map(|(value, base)| zigzag(ordered(*value).wrapping_sub(ordered(*base)))).collect()
    })
}

/// Undoes [`bit_differences`]; the codes come as they are on the wire.
pub(crate) fn undo_bit_differences(codes: &[[u8; 4]], base: &[f32]) -> Vec<f32> {
    pulp::Arch::new().dispatch(|| {
        let codes = codes.iter().map(|code| u32::from_le_bytes(*code)).zip(base);
        codes.map(|(code, base)| unordered(ordered(*base).wrapping_add(unzigzag(code)))).collect()
    })
}

/// `values - base`.
pub(crate) fn differences(values: &[f32], base: &[f32]) -> Vec<f32> {
    pulp::Arch::new().dispatch(|| values.iter().zip(base).map(|(value, base)| value - base).collect())
}

/// Adds to each of `values`.
pub(crate) fn add(values: &mut [f32], terms: &[f32]) {
    pulp::Arch::new().dispatch(|| {
        for (value, term) in values.iter_mut().zip(terms) {
            *value += term;
        }
    });
}

/// Bytes of integers, without a copy where the machine's order is that of the wire.
pub(crate) fn integer_bytes(integers: &[u32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(cast_slice(integers))
    } else {
        integers.iter().flat_map(|v| v.to_le_bytes()).collect()
    }
}

/// Integers that order as the floats do, the negative zero right below zero.
#[inline(always)]
fn ordered(value: f32) -> u32 {
    let bits = value.to_bits();
    let negative = (bits.cast_signed() >> 31).cast_unsigned();
    bits ^ (negative | 0x8000_0000)
}

#[inline(always)]
fn unordered(integer: u32) -> f32 {
    let positive = (integer.cast_signed() >> 31).cast_unsigned();
    f32::from_bits(integer ^ (!positive | 0x8000_0000))
}

#[inline(always)]
fn zigzag(difference: u32) -> u32 {
    (difference << 1) ^ (difference.cast_signed() >> 31).cast_unsigned()
}

#[inline(always)]
fn unzigzag(code: u32) -> u32 {
    (code >> 1) ^ (code & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn close_values_differ_by_little() {
        let close = |value: f32, base: f32| bit_differences(&[value], &[base])[0];
        assert_eq!(close(1.0, 1.0), 0);
        assert_eq!(close(1.0, 1.0f32.next_down()), 2);
        assert_eq!(close(1.0f32.next_down(), 1.0), 1);
        assert_eq!(close(0.0, -0.0), 2);
    }

    proptest! {
        #[test]
        fn bit_differences_are_exact(pairs in proptest::collection::vec(any::<(u32, u32)>(), 1..200)) {
            let (values, base): (Vec<_>, Vec<_>) =
                pairs.iter().map(|(v, b)| (f32::from_bits(*v), f32::from_bits(*b))).unzip();
            let codes = bit_differences(&values, &base);
            let got = undo_bit_differences(integer_bytes(&codes).as_chunks().0, &base);
            for (got, value) in got.iter().zip(&values) {
                prop_assert_eq!(got.to_bits(), value.to_bits());
            }
        }
    }
}
