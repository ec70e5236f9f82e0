//! Bounds how far an update may go.

use std::io::{self, Read, Seek, SeekFrom};

use crate::{accumulator::Spool, norm::fill};

/// Bytes computed at once; whole values.
const CHUNK: usize = 1 << 18;

/// `base + scale (adapter - base)`, encoded, computed while it is read: an adapter that is read from its first byte, as the
/// accumulator does, and never held (the clipping of DP-FedAvg, McMahan et al., arXiv 1710.06963; of itself a defence against
/// updates that are boosted, Sun et al., arXiv 1911.07963).
///
/// Every value is rounded towards the base, so that rounding never makes the result longer than asked for.
pub(crate) struct Scaled<'a> {
    adapter: &'a mut dyn Spool,
    base: &'a mut dyn Spool,
    scale: f64,
    chunk: Vec<u8>,
    /// Bytes of the chunk that were read.
    read: usize,
}

impl<'a> Scaled<'a> {
    pub fn new(adapter: &'a mut dyn Spool, base: &'a mut dyn Spool, scale: f64) -> Self {
        Self { adapter, base, scale, chunk: Vec::new(), read: 0 }
    }

    fn compute(&mut self) -> io::Result<()> {
        let mut base = vec![0; CHUNK];
        self.chunk.resize(CHUNK, 0);
        let (length, beside) = (fill(self.adapter, &mut self.chunk)?, fill(self.base, &mut base)?);
        if length != beside {
            let text = "an update and what it began with have different lengths";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.chunk.truncate(length);
        let scale = self.scale;
        pulp::Arch::new().dispatch(|| shrink(&mut self.chunk, &base[..length], scale));
        self.read = 0;
        Ok(())
    }
}

impl Read for Scaled<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.read == self.chunk.len() {
            self.compute()?;
        }
        let count = out.len().min(self.chunk.len() - self.read);
        out[..count].copy_from_slice(&self.chunk[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

impl Seek for Scaled<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(0) => {
                self.adapter.rewind()?;
                self.base.rewind()?;
                self.chunk.clear();
                self.read = 0;
                Ok(0)
            }
            SeekFrom::End(0) => self.adapter.seek(to),
            _ => Err(io::ErrorKind::Unsupported.into()),
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
        let (adapter, base) = (encode(adapter), encode(base));
        let norm = distance(&adapter, &base);
        let (mut adapter, mut base) = (Cursor::new(adapter), Cursor::new(base));
        if norm <= bound {
            return (values_of(adapter.get_ref()), norm);
        }
        let mut clipped = Scaled::new(&mut adapter, &mut base, bound / norm);
        let mut out = Vec::new();
        // What was read before does not show.
        for _ in 0..2 {
            clipped.rewind().unwrap();
            out.clear();
            clipped.read_to_end(&mut out).unwrap();
        }
        assert_eq!(clipped.seek(SeekFrom::End(0)).unwrap(), out.len() as u64);
        (values_of(&out), norm)
    }

    fn values_of(out: &[u8]) -> Vec<f32> {
        out.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
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
            let error = Scaled::new(&mut left, &mut right, 0.5).read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
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
