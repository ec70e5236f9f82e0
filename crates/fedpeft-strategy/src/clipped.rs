//! The sum of clipped updates that DP-FedAvg releases (McMahan et al., arXiv 1710.06963), on a grid of integers.
//!
//! An update `x_i - x` is scaled to an L2 norm of at most `S` and rounded to whole multiples of `g = z S / 2^20`, so
//! that noise of standard deviation `z S` is discrete Gaussian noise of standard deviation 2^20 on integers. Rounding `d`
//! values lengthens an update by up to `g sqrt(d) / 2`; it is scaled to that much less, and the norm of the integers is
//! checked in integers: what the noise is measured against holds exactly, not up to rounding. All updates weigh the same.
//!
//! Integers add up to the same sum in any order. Memory is 8 bytes per value, however many clients there are.

use std::io::SeekFrom;

use fedpeft_codec::{CodecError, Layout};

use crate::{
    accumulator::{AccumulateError, MAGIC, Spool, SpoolError, check_values, integer, within_bound, zeros},
    norm::{LANES, add_squares},
};

/// Standard deviation of the noise on the integers of the sum.
const SIGMA: f64 = (1u64 << 20) as f64;
/// Clipping norms that make sense of `f32` values.
const CLIP: std::ops::RangeInclusive<f64> = 1e-9..=1e9;
/// Least noise multiplier: integers are below 2^31 with it, and 2^16 - 1 of them far below 2^63.
const LEAST_NOISE: f64 = 1.0 / 1024.0;
/// Most of the clipping norm that rounding may cost.
const MOST_ROUNDING: f64 = 0.1;
/// Values read, or given away, at once.
const CHUNK: usize = 1 << 17;

/// A sum of clipped updates.
#[derive(Debug, Clone, PartialEq)]
pub struct ClippedSum {
    layout: Layout,
    sums: Vec<i64>,
    /// The step `g` of the grid.
    step: f64,
    /// Norm that updates are scaled to.
    target: f64,
    /// Largest square of the norm of an update's integers.
    most_square: u128,
    updates: u64,
    /// Whether it holds half an update.
    spoilt: bool,
}

impl ClippedSum {
    /// An empty sum of updates of an L2 norm of at most `clip`, for noise of standard deviation
    /// `noise_multiplier x clip`.
    ///
    /// # Errors
    /// Numbers out of range, noise that asks for too coarse a grid for so many values, no memory.
    pub fn new(layout: Layout, clip: f64, noise_multiplier: f64) -> Result<Self, AccumulateError> {
        if !CLIP.contains(&clip) {
            return Err(AccumulateError::Clip(clip.to_string()));
        }
        if !(noise_multiplier >= LEAST_NOISE && noise_multiplier.is_finite()) {
            return Err(AccumulateError::Noise(noise_multiplier.to_string()));
        }
        let values = layout.values();
        // All of the next two in steps of the grid.
        let (norm, rounding) = (SIGMA / noise_multiplier, (values as f64).sqrt() / 2.0);
        if rounding > MOST_ROUNDING * norm {
            let most = MOST_ROUNDING * SIGMA / rounding;
            return Err(AccumulateError::Coarse {
                noise: noise_multiplier.to_string(),
                values,
                most: most.to_string(),
            });
        }
        // What floats may err in a norm of so many terms, and more.
        let slack = 1e-9 + values as f64 * f64::EPSILON;
        Ok(Self {
            sums: zeros(values)?,
            layout,
            step: noise_multiplier * clip / SIGMA,
            target: (norm - rounding) * (1.0 - slack),
            most_square: (norm * norm * (1.0 - 4.0 * f64::EPSILON)) as u128,
            updates: 0,
            spoilt: false,
        })
    }

    /// Updates in the sum.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Adds what an encoded adapter differs by from its base, clipped, and returns the norm that it had before. Both are
    /// read twice. Either all of it is added or, with an error, nothing; only when reading fails the second time is the
    /// sum spoilt, and says so whenever it is used.
    pub fn add(&mut self, adapter: &mut dyn Spool, base: &mut dyn Spool) -> Result<f64, SpoolError> {
        self.usable()?;
        let updates = within_bound(self.updates + 1)?;
        let mut squares = [0.0; LANES];
        let layout = &self.layout;
        each_pair(adapter, base, layout, |first, values, bases| {
            check_values(first, values, layout)?;
            check_values(first, bases, layout)?;
            add_squares(&mut squares, values.as_flattened(), bases.as_flattened());
            Ok(())
        })?;
        let norm = squares.iter().sum::<f64>().sqrt();
        // To steps of the grid, and shorter where it is too long.
        let scale = (self.target / norm).min(1.0 / self.step);
        let mut square = 0u128;
        self.spoilt = true;
        each_pair(adapter, base, layout, |first, values, bases| {
            let sums = &mut self.sums[first..first + values.len()];
            square += pulp::Arch::new().dispatch(|| add_rounded(sums, values, bases, scale));
            Ok(())
        })?;
        // Never, unless what was read has changed: then the noise would not cover it.
        if square > self.most_square {
            return Err(AccumulateError::Spoilt.into());
        }
        self.spoilt = false;
        self.updates = updates;
        Ok(norm)
    }

    /// Gives `base` moved by the noised sum over `divisor` in chunks of 2^17 values, the last one shorter; `noise` gives
    /// one integer for each, in order. A sum of no update is a release too. The sum stays as it is.
    pub fn each_mean(
        &self,
        base: &mut dyn Spool,
        divisor: f64,
        noise: &mut dyn FnMut(&mut [i64]),
        each: &mut dyn FnMut(&[f64]) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        self.usable()?;
        check_length(base, &self.layout)?;
        base.rewind()?;
        let chunk = CHUNK.min(self.sums.len());
        let (mut bytes, mut noised, mut means) = (vec![0; 4 * chunk], vec![0; chunk], vec![0.0; chunk]);
        let unit = self.step / divisor;
        for sums in self.sums.chunks(CHUNK) {
            let (bytes, noised, means) =
                (&mut bytes[..4 * sums.len()], &mut noised[..sums.len()], &mut means[..sums.len()]);
            base.read_exact(bytes)?;
            noise(noised);
            let cells = sums.iter().zip(&*noised).zip(bytes.as_chunks::<4>().0);
            for (mean, ((sum, noise), base)) in means.iter_mut().zip(cells) {
                // In integers: a sum of floats would show which of them were rounded.
                let released = sum.saturating_add(*noise);
                *mean = f64::from(f32::from_le_bytes(*base)) + released as f64 * unit;
            }
            each(means)?;
        }
        Ok(())
    }

    fn usable(&self) -> Result<(), AccumulateError> {
        if self.spoilt { Err(AccumulateError::Spoilt) } else { Ok(()) }
    }
}

/// Adds scaled and rounded differences to the sums, and returns the sum of their squares.
#[inline(always)]
fn add_rounded(sums: &mut [i64], values: &[[u8; 4]], bases: &[[u8; 4]], scale: f64) -> u128 {
    let mut square = 0;
    for ((sum, value), base) in sums.iter_mut().zip(values).zip(bases) {
        let difference = f64::from(f32::from_le_bytes(*value)) - f64::from(f32::from_le_bytes(*base));
        // Below 2^31 in magnitude.
        let rounded = integer(difference * scale + MAGIC);
        square += u128::from(rounded.unsigned_abs()).pow(2);
        *sum += rounded;
    }
    square
}

/// Reads two adapters of this layout from their first value on, in chunks. `each` gets the index of the first value.
fn each_pair(
    adapter: &mut dyn Spool,
    base: &mut dyn Spool,
    layout: &Layout,
    mut each: impl FnMut(usize, &[[u8; 4]], &[[u8; 4]]) -> Result<(), SpoolError>,
) -> Result<(), SpoolError> {
    check_length(adapter, layout)?;
    check_length(base, layout)?;
    adapter.rewind()?;
    base.rewind()?;
    let chunk = 4 * CHUNK.min(layout.values());
    let (mut values, mut bases) = (vec![0; chunk], vec![0; chunk]);
    for first in (0..layout.values()).step_by(CHUNK) {
        let bytes = 4 * (layout.values() - first).min(CHUNK);
        adapter.read_exact(&mut values[..bytes])?;
        base.read_exact(&mut bases[..bytes])?;
        each(first, values[..bytes].as_chunks::<4>().0, bases[..bytes].as_chunks::<4>().0)?;
    }
    Ok(())
}

fn check_length(adapter: &mut dyn Spool, layout: &Layout) -> Result<(), SpoolError> {
    let got = adapter.seek(SeekFrom::End(0))?;
    if got == layout.bytes() {
        return Ok(());
    }
    let (got, values) = (usize::try_from(got).unwrap_or(usize::MAX), layout.values());
    Err(AccumulateError::from(CodecError::Size { got, expected: 4 * values, values }).into())
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor};

    use super::*;
    use crate::accumulator::{MAX_MAGNITUDE, MAX_UPDATES};
    use fedpeft_codec::{TensorSpec, encode};
    use proptest::prelude::*;

    fn layout(values: usize) -> Layout {
        Layout::new(vec![TensorSpec { name: "w".into(), shape: vec![values as u64] }]).unwrap()
    }

    fn add(sum: &mut ClippedSum, adapter: &[f32], base: &[f32]) -> Result<f64, SpoolError> {
        sum.add(&mut Cursor::new(encode(adapter)), &mut Cursor::new(encode(base)))
    }

    /// The mean that is released with this noise on every value.
    fn released(sum: &ClippedSum, base: &[f32], divisor: f64, noise: i64) -> Vec<f64> {
        let mut means = Vec::new();
        let mut each = |chunk: &[f64]| {
            means.extend_from_slice(chunk);
            Ok(())
        };
        sum.each_mean(&mut Cursor::new(encode(base)), divisor, &mut |out| out.fill(noise), &mut each)
            .unwrap();
        means
    }

    #[test]
    fn long_updates_are_clipped_and_short_ones_are_kept() {
        let base = [1.0, 2.0, 0.0];
        let mut sum = ClippedSum::new(layout(3), 0.5, 1.0).unwrap();
        assert_eq!(add(&mut sum, &[4.0, 6.0, 0.0], &base).unwrap(), 5.0);
        let means = released(&sum, &base, 1.0, 0);
        for (mean, wanted) in means.iter().zip([1.3, 2.4, 0.0]) {
            // The grid is 2^-21.
            assert!((mean - wanted).abs() < 1e-6, "{mean} is not {wanted}");
        }
        assert!((add(&mut sum, &[1.0, 2.0, 0.25], &base).unwrap() - 0.25).abs() < 1e-12);
        let means = released(&sum, &base, 8.0, 0);
        assert!((means[0] - 1.0 - 0.3 / 8.0).abs() < 1e-6 && means[2] == 0.25 / 8.0, "{means:?}");
        assert_eq!(sum.updates(), 2);
        // Noise is in steps of the grid: 2^20 of them are z S.
        let noised = released(&sum, &base, 8.0, 1 << 20);
        assert!((noised[1] - means[1] - 0.5 / 8.0).abs() < 1e-12);
    }

    #[test]
    fn an_empty_round_releases_its_noise() {
        let sum = ClippedSum::new(layout(2), 2.0, 1.5).unwrap();
        assert_eq!(released(&sum, &[1.0, -1.0], 4.0, -(1 << 20)), [0.25, -1.75]);
    }

    #[test]
    fn bad_updates_are_named_and_leave_no_trace() {
        let base = [0.0; 3];
        let mut sum = ClippedSum::new(layout(3), 1.0, 1.0).unwrap();
        add(&mut sum, &[0.1, 0.2, 0.3], &base).unwrap();
        let before = sum.clone();
        for (bad, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (2.0 * MAX_MAGNITUDE, "131072")] {
            let error = add(&mut sum, &[0.0, 0.0, bad], &base).unwrap_err().to_string();
            assert!(error.contains("value 2 of tensor w") && error.contains(text), "{error}");
            add(&mut sum, &base, &[0.0, bad, 0.0]).unwrap_err();
        }
        for length in [0, 2, 4] {
            let error = add(&mut sum, &vec![0.0; length], &base).unwrap_err();
            assert!(matches!(error, SpoolError::Accumulate(AccumulateError::Codec(CodecError::Size { .. }))));
            add(&mut sum, &base, &vec![0.0; length]).unwrap_err();
        }
        assert_eq!(sum, before);
        sum.updates = MAX_UPDATES;
        assert!(add(&mut sum, &base, &base).unwrap_err().to_string().contains("at most"));
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let of = |values, clip, noise| ClippedSum::new(layout(values), clip, noise).unwrap_err();
        for clip in [0.0, -1.0, 1e10, f64::NAN] {
            assert_eq!(of(3, clip, 1.0), AccumulateError::Clip(clip.to_string()));
        }
        for noise in [0.0, -1.0, 1e-4, f64::INFINITY, f64::NAN] {
            assert_eq!(of(3, 1.0, noise), AccumulateError::Noise(noise.to_string()));
        }
        // 0.1 x 2^20 / (sqrt(1,000,000) / 2) = 209.7
        ClippedSum::new(layout(1_000_000), 1.0, 209.0).unwrap();
        let error = of(1_000_000, 1.0, 210.0).to_string();
        assert!(
            error.contains("210") && error.contains("1000000 values") && error.contains("209.7"),
            "{error}"
        );
    }

    /// A file whose values grow once they were checked.
    struct Growing(Cursor<Vec<u8>>, Vec<u8>, usize);

    impl io::Read for Growing {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.0.read(bytes)
        }
    }

    impl io::Seek for Growing {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.2 += 1;
            if self.2 == 3 {
                *self.0.get_mut() = std::mem::take(&mut self.1);
            }
            self.0.seek(to)
        }
    }

    #[test]
    fn an_update_that_is_longer_than_it_was_spoils_the_sum() {
        let base = encode(&[0.0; 3]);
        let mut sum = ClippedSum::new(layout(3), 1.0, 1.0).unwrap();
        let (short, long) = (encode(&[0.5; 3]).to_vec(), encode(&[0.7; 3]).to_vec());
        let error = sum.add(&mut Growing(Cursor::new(short), long, 0), &mut Cursor::new(&base)).unwrap_err();
        assert!(matches!(error, SpoolError::Accumulate(AccumulateError::Spoilt)), "{error}");
        assert!(add(&mut sum, &[0.0; 3], &[0.0; 3]).is_err());
        let mut each = |_: &[f64]| Ok(());
        sum.each_mean(&mut Cursor::new(&base), 1.0, &mut |_| {}, &mut each).unwrap_err();
    }

    #[test]
    fn chunks_are_joined() {
        let values = 2 * CHUNK + 77;
        let adapter: Vec<f32> = (0..values).map(|at| (at as f32 * 0.1).sin()).collect();
        let base = vec![0.5; values];
        let mut sum = ClippedSum::new(layout(values), 1e6, 0.5).unwrap();
        let norm = add(&mut sum, &adapter, &base).unwrap();
        assert_eq!(norm, crate::distance(&encode(&adapter), &encode(&base)));
        let means = released(&sum, &base, 1.0, 0);
        assert!(means.iter().zip(&adapter).all(|(mean, value)| (mean - f64::from(*value)).abs() < 0.3));
        let mut sizes = Vec::new();
        let (mut drawn, mut each) = (0, |chunk: &[f64]| {
            sizes.push(chunk.len());
            Ok(())
        });
        sum.each_mean(&mut Cursor::new(encode(&base)), 1.0, &mut |out| drawn += out.len(), &mut each)
            .unwrap();
        assert_eq!((sizes, drawn), (vec![CHUNK, CHUNK, 77], values));
    }

    /// Adapter values over many magnitudes, zeros, and single spikes.
    fn adapters() -> impl Strategy<Value = Vec<Vec<f32>>> {
        let value = prop_oneof![
            6 => -1.0f32..1.0,
            2 => -MAX_MAGNITUDE..=MAX_MAGNITUDE,
            2 => Just(0.0f32),
            1 => Just(MAX_MAGNITUDE),
            1 => any::<f32>().prop_filter("within bounds", |v| v.abs() <= MAX_MAGNITUDE),
        ];
        let spike = (0usize..8, -MAX_MAGNITUDE..=MAX_MAGNITUDE).prop_map(|(at, value)| {
            let mut spike = vec![0.0; 8];
            spike[at] = value;
            spike
        });
        let adapter = prop_oneof![
            3 => proptest::collection::vec(value, 8),
            1 => spike,
            1 => Just(vec![0.0; 8]),
            1 => (-1e-3f32..1e-3).prop_map(|value| vec![value; 8]),
        ];
        proptest::collection::vec(adapter, 2..8)
    }

    proptest! {
        #[test]
        fn no_update_moves_the_integers_by_more_than_the_noise_is_measured_against(
            adapters in adapters(), clip in -8.0f64..8.0, noise in -3.0f64..4.0,
        ) {
            let (clip, noise) = (10f64.powf(clip), 10f64.powf(noise));
            let most = SIGMA / noise;
            for pair in adapters.windows(2) {
                let mut sum = ClippedSum::new(layout(8), clip, noise).unwrap();
                let norm = add(&mut sum, &pair[0], &pair[1]).unwrap();
                let square: u128 = sum.sums.iter().map(|value| u128::from(value.unsigned_abs()).pow(2)).sum();
                prop_assert!(square <= (most * most) as u128, "{} {}", square, most);
                // Nor is it clipped to less than there is room for.
                let wanted = norm.min(clip) / sum.step;
                prop_assert!((square as f64).sqrt() >= 0.999 * wanted - 3.0 * 8f64.sqrt(), "{} {}", square, wanted);
            }
        }

        #[test]
        fn order_does_not_change_a_byte(
            (adapters, shuffled) in adapters().prop_flat_map(|a| (Just(a.clone()), Just(a).prop_shuffle())),
        ) {
            let base = [0.25; 8];
            let of = |adapters: &[Vec<f32>]| {
                let mut sum = ClippedSum::new(layout(8), 1.0, 1.1).unwrap();
                adapters.iter().for_each(|adapter| { add(&mut sum, adapter, &base).unwrap(); });
                sum
            };
            prop_assert_eq!(of(&adapters), of(&shuffled));
        }
    }
}
