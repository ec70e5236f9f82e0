//! Bounds how far an update may go.

use std::io::{self, Write};

use crate::{
    accumulator::{Spool, SpoolError},
    norm::{distance_spooled, fill},
};

/// Bytes read at once.
const CHUNK: usize = 1 << 18;

/// Writes `base + (adapter - base) min(1, bound / norm)`, encoded, where `norm` is the L2 distance of the two, and returns
/// `norm`: what a client changed is scaled until it is at most `bound` long (the clipping of DP-FedAvg, McMahan et al.,
/// arXiv 1710.06963; of itself a defence against updates that are boosted, Sun et al., arXiv 1911.07963).
///
/// Within the bound the bytes are those of `adapter`. Beyond it every value is rounded towards the base, so that
/// rounding never makes the result longer than the bound: a sensitivity that noise is calibrated to holds for the
/// numbers that are added, not only for the reals they stand for.
///
/// Both are read from their first byte and have been checked by the caller; `bound` is above 0.
///
/// # Errors
/// What cannot be read or written; adapters of different lengths.
pub fn clip_into(
    adapter: &mut dyn Spool,
    base: &mut dyn Spool,
    bound: f64,
    out: &mut dyn Write,
) -> Result<f64, SpoolError> {
    let norm = distance_spooled(adapter, base)?;
    let scale = if norm <= bound { 1.0 } else { bound / norm };
    adapter.rewind()?;
    base.rewind()?;
    let (mut values, mut bases) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let (read, beside) = (fill(adapter, &mut values)?, fill(base, &mut bases)?);
        if read != beside {
            let text = "an update and what it began with have different lengths";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text).into());
        }
        if scale < 1.0 {
            pulp::Arch::new().dispatch(|| shrink(&mut values[..read], &bases[..read], scale));
        }
        out.write_all(&values[..read])?;
        if read < CHUNK {
            return Ok(norm);
        }
    }
}

#[inline(always)]
fn shrink(values: &mut [u8], bases: &[u8], scale: f64) {
    for (value, base) in values.as_chunks_mut::<4>().0.iter_mut().zip(bases.as_chunks::<4>().0) {
        *value = shrunk(f32::from_le_bytes(*value), f32::from_le_bytes(*base), scale).to_le_bytes();
    }
}

/// One value, rounded towards its base.
#[inline(always)]
fn shrunk(value: f32, base: f32, scale: f64) -> f32 {
    let moved = (f64::from(value) - f64::from(base)) * scale;
    let exact = f64::from(base) + moved;
    let rounded = exact as f32;
    if (f64::from(rounded) - f64::from(base)).abs() <= moved.abs() {
        rounded
    } else if moved > 0.0 {
        rounded.next_down()
    } else {
        rounded.next_up()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use fedpeft_codec::encode;
    use proptest::prelude::*;

    use super::*;
    use crate::distance;

    fn clipped(adapter: &[f32], base: &[f32], bound: f64) -> (Vec<f32>, f64) {
        let mut out = Vec::new();
        let (mut adapter, mut base) = (Cursor::new(encode(adapter)), Cursor::new(encode(base)));
        let norm = clip_into(&mut adapter, &mut base, bound, &mut out).unwrap();
        (out.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(), norm)
    }

    #[test]
    fn what_went_too_far_is_scaled_back() {
        let base = [1.0, -2.0, 0.5];
        assert_eq!(clipped(&[4.0, 2.0, 0.5], &base, 2.5), (vec![2.5, 0.0, 0.5], 5.0));
        assert_eq!(clipped(&[4.0, 2.0, 0.5], &base, 5.0), (vec![4.0, 2.0, 0.5], 5.0));
        assert_eq!(clipped(&base, &base, 1e-3), (base.to_vec(), 0.0));
        assert_eq!(clipped(&[4.0, 2.0, 0.5], &base, 0.0).0, base);
    }

    #[test]
    fn chunks_do_not_show() {
        let length = CHUNK / 4 * 2 + 13;
        let values = |seed: f32| (0..length).map(|at| (at as f32 * seed).sin()).collect::<Vec<_>>();
        let (adapter, base) = (values(0.1), values(0.7));
        let (out, norm) = clipped(&adapter, &base, 1.0);
        assert_eq!(norm, distance(&encode(&adapter), &encode(&base)));
        for at in [0, CHUNK / 4 - 1, CHUNK / 4, length - 1] {
            assert_eq!(out[at], shrunk(adapter[at], base[at], 1.0 / norm));
        }
        assert!((distance(&encode(&out), &encode(&base)) - 1.0).abs() < 1e-4);
    }

    #[test]
    fn lengths_that_differ_are_an_error() {
        for (left, right) in [(3, 4), (4, 3)] {
            let (mut left, mut right) = (Cursor::new(vec![0; left * 4]), Cursor::new(vec![0; right * 4]));
            let error = clip_into(&mut left, &mut right, 1.0, &mut Vec::new()).unwrap_err();
            assert!(matches!(error, SpoolError::Io(_)), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_result_is_longer_than_the_bound(
            values in prop::collection::vec((-65_536f32..65_536.0, prop_oneof![-1f32..1.0, -65_536f32..65_536.0]), 1..40),
            share in 1e-6f64..1.2,
        ) {
            let (adapter, base): (Vec<_>, Vec<_>) = values.into_iter().unzip();
            let bound = share * distance(&encode(&adapter), &encode(&base));
            let (out, norm) = clipped(&adapter, &base, bound);
            prop_assert!(distance(&encode(&out), &encode(&base)) <= bound * (1.0 + 1e-14) || norm <= bound);
            if norm <= bound {
                prop_assert_eq!(out, adapter);
            } else {
                for ((out, value), base) in out.iter().zip(&adapter).zip(&base) {
                    let exact = f64::from(*base) + (f64::from(*value) - f64::from(*base)) * (bound / norm);
                    let unit = f64::from(base.abs().max(value.abs())) * 2f64.powi(-23);
                    prop_assert!((f64::from(*out) - exact).abs() <= unit, "{} {}", out, exact);
                }
            }
        }
    }
}
