//! Updates as integers whose sum cannot wrap, and back.
//!
//! A value `x` of a client with weight `w` becomes `x w 2^precision / bound`, rounded; `x` is at most `bound` after clipping,
//! so integers are at most `max_weight 2^precision`. The modulus `2^bits` is larger than any sum of a whole cohort, both
//! signs, and room for noise; thus the sum of the integers is exact, and all that is lost is rounding. The
//! weight itself is the last word, so that its sum, by which the mean is divided, is as secret as the rest.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{params::ParamsError, words::Words};

/// How values become integers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Encoding {
    /// Bits of a word, 8 to 56.
    pub bits: u8,
    /// Values are at most this far from zero; what is further is clamped.
    pub bound: f32,
    /// An update whose L2 norm is larger is scaled down to it, before [`Self::bound`] is applied.
    pub norm: Option<f32>,
    /// `bound` is `2^precision` integers, for an update of weight 1.
    pub precision: u8,
    /// Largest weight of an update.
    pub max_weight: u32,
    /// Room for noise in the sum, in integers to either side. Sums beyond wrap around.
    pub headroom: u64,
    /// Standard deviation of the discrete Gaussian noise that each client adds to each of its integers: 0 for none, or
    /// [`LEAST_NOISE`] to [`MOST_NOISE`]. Updates then have weight 1.
    pub noise: u64,
}

/// Noise below this is not as good in sum as noise drawn at once: see [`Encoding::private`].
pub const LEAST_NOISE: u64 = 8;
/// Most noise of a client.
pub const MOST_NOISE: u64 = 1 << 24;
/// Standard deviations of the noise in a sum that have room in a word: beyond them is a value with a probability of less
/// than 2^-180.
const NOISE_ROOM: f64 = 16.0;

/// An update that cannot be encoded.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum EncodeError {
    #[error("value {at} of the update is {value}: only finite values are accepted")]
    NotFinite { at: usize, value: f32 },
    #[error("weight {weight}: this round takes 1 to {max}")]
    Weight { weight: u32, max: u32 },
    #[error("updates of this round have noise of {0} integers, and none is given")]
    Noise(u64),
}

/// How values between two integers are rounded.
pub enum Rounding<'a> {
    /// To the nearest, halves away from zero: smallest error, the same in every repetition.
    Nearest,
    /// Up with the probability of what is above the lower one: the mean is right, however small the values.
    Stochastic(&'a mut dyn Rng),
}

/// An update as words, not yet masked: as secret as the update.
pub struct Encoded {
    pub(crate) words: Words,
    /// Values that were further from zero than the bound.
    pub clamped: usize,
}

impl Encoded {
    /// The integers of the values, and the weight.
    pub fn integers(&self) -> impl Iterator<Item = i64> + '_ {
        self.words.integers()
    }
}

/// Noise for the integers of an update, a piece at a time. See [`Encoding::encode`].
pub type Noise<'a> = &'a mut dyn FnMut(&mut [i64]);

impl Encoding {
    /// The encoding with as few bits as sums of `cohort` updates need.
    ///
    /// # Errors
    /// [`ParamsError`] if not even 56 bits are enough, or a bound is none.
    pub fn fit(
        cohort: usize,
        bound: f32,
        precision: u8,
        max_weight: u32,
        headroom: u64,
    ) -> Result<Self, ParamsError> {
        Self { bits: 56, bound, norm: None, precision, max_weight, headroom, noise: 0 }.fitted(cohort)
    }

    fn fitted(self, cohort: usize) -> Result<Self, ParamsError> {
        self.check(cohort)?;
        Ok(Self { bits: self.needed(cohort).max(8) as u8, ..self })
    }

    /// The encoding of sums that are differentially private: updates of `values` values are scaled down to an L2 norm of
    /// `norm`, all have weight 1, and each client adds its part of the noise (the distributed discrete Gaussian
    /// mechanism of Kairouz, Liu and Steinke, ICML 2021, without their rotation). In the sum of any `honest` clients it has a
    /// standard deviation of at least `noise_multiplier` times the norm of one update as integers, rounding
    /// included ([`Self::sensitivity`]).
    ///
    /// A sum of discrete Gaussians is not one, but nearly: with parts of standard deviation `s`, all that is computed for the
    /// Gaussian mechanism holds up to `10 sum_k exp(-2 pi^2 s^2 k / (k + 1))` per value (their proposition 14), which
    /// at 8 is below `clients x 10^-273`.
    ///
    /// # Errors
    /// [`ParamsError::Coarse`] where rounding would take more than a tenth of the noise; [`ParamsError::Noise`] where each client's part would be below [`LEAST_NOISE`] or above [`MOST_NOISE`], or nobody is
    /// honest; otherwise those of [`Self::fit`].
    pub fn private(
        cohort: usize,
        values: usize,
        norm: f32,
        precision: u8,
        noise_multiplier: f64,
        honest: usize,
    ) -> Result<Self, ParamsError> {
        let plain =
            Self { bits: 56, bound: norm, norm: Some(norm), precision, max_weight: 1, headroom: 0, noise: 0 };
        plain.check(cohort)?;
        if (values as f64).sqrt() > f64::from(precision).exp2() / 10.0 {
            return Err(ParamsError::Coarse { values, precision });
        }
        let noise = (noise_multiplier * plain.sensitivity(values) / (honest as f64).sqrt()).ceil();
        if !(LEAST_NOISE as f64..=MOST_NOISE as f64).contains(&noise) {
            return Err(ParamsError::Noise(noise));
        }
        let headroom = (NOISE_ROOM * noise * (cohort as f64).sqrt()).ceil() as u64;
        Self { headroom, noise: noise as u64, ..plain }.fitted(cohort)
    }

    /// What [`Self::private`] was asked for, at least: standard deviation of the noise of `honest` clients together over the
    /// norm of one update of `values` values.
    pub fn noise_multiplier(&self, values: usize, honest: usize) -> f64 {
        self.noise as f64 * (honest as f64).sqrt() / self.sensitivity(values)
    }

    /// Bits of sums of `cohort` updates.
    fn needed(&self, cohort: usize) -> u32 {
        let largest = cohort as u128 * self.largest() + u128::from(self.headroom);
        // Both signs.
        u128::BITS - largest.leading_zeros() + 1
    }

    /// Largest integer of one update.
    fn largest(&self) -> u128 {
        u128::from(self.max_weight) << self.precision.min(64)
    }

    pub(crate) fn check(&self, cohort: usize) -> Result<(), ParamsError> {
        if !(8..=56).contains(&self.bits) {
            return Err(ParamsError::Bits { bits: self.bits });
        }
        if let Some(bound) = [Some(self.bound), self.norm]
            .into_iter()
            .flatten()
            .find(|bound| !bound.is_normal() || *bound < 0.0)
        {
            return Err(ParamsError::Bound(bound));
        }
        if self.max_weight == 0 || (self.noise > 0 && self.max_weight > 1) {
            return Err(ParamsError::Weight);
        }
        if self.noise > 0 && (self.norm.is_none() || !(LEAST_NOISE..=MOST_NOISE).contains(&self.noise)) {
            return Err(ParamsError::Noise(self.noise as f64));
        }
        let (needed, bits) = (self.needed(cohort), self.bits);
        if needed > u32::from(bits) {
            return Err(ParamsError::Wraps { cohort, needed, bits });
        }
        Ok(())
    }

    /// Integers of a value of 1, for an update of weight 1.
    pub fn scale(&self) -> f64 {
        f64::from(self.precision).exp2() / f64::from(self.bound)
    }

    /// L2 norm of the integers of an update of `values` values, at most: what noise for differential privacy has to hide.
    /// Rounding moves each value by less than one integer.
    pub fn sensitivity(&self, values: usize) -> f64 {
        let root = (values as f64).sqrt();
        let norm = (f64::from(self.bound) * root).min(self.norm.map_or(f64::INFINITY, f64::from));
        norm * self.scale() * f64::from(self.max_weight) + root
    }

    /// Encodes an update of weight `weight`.
    ///
    /// `noise` may add to the integers, before they are masked: a client's part of noise whose sum hides every single
    /// client (distributed differential privacy). It gets the integers of all values in order, in pieces, and not the
    /// weight: with noise, every client should have weight 1, so that weights say nothing. Integers that the noise
    /// makes too large wrap around modulo `2^bits`, as in Kairouz, Liu and Steinke (ICML 2021): that costs no
    /// privacy, and accuracy only if the sum leaves the [headroom](Self::headroom).
    ///
    /// # Errors
    /// [`EncodeError`] if a value is not finite, the weight out of range, or noise missing that was agreed on.
    pub fn encode(
        &self,
        update: &[f32],
        weight: u32,
        mut rounding: Rounding<'_>,
        mut noise: Option<Noise<'_>>,
    ) -> Result<Encoded, EncodeError> {
        let max = self.max_weight;
        if !(1..=max).contains(&weight) {
            return Err(EncodeError::Weight { weight, max });
        }
        if self.noise > 0 && noise.is_none() {
            return Err(EncodeError::Noise(self.noise));
        }
        let mut squares = 0.0;
        for (at, value) in update.iter().enumerate() {
            if !value.is_finite() {
                return Err(EncodeError::NotFinite { at, value: *value });
            }
            squares += f64::from(*value) * f64::from(*value);
        }
        let shrink = self.norm.map_or(1.0, |norm| (f64::from(norm) / squares.sqrt()).min(1.0));
        let (bound, scale) = (f64::from(self.bound), self.scale() * f64::from(weight));
        let mut words = Words::zeros(self.bits, update.len() + 1);
        let mut clamped = 0;
        let mut integers = [0; 1024];
        for (piece, values) in update.chunks(integers.len()).enumerate() {
            let integers = &mut integers[..values.len()];
            for (integer, value) in integers.iter_mut().zip(values) {
                let value = f64::from(*value) * shrink;
                clamped += usize::from(value.abs() > bound);
                *integer = rounding.round(value.clamp(-bound, bound) * scale);
            }
            if let Some(noise) = &mut noise {
                noise(integers);
            }
            let first = piece * 1024;
            integers.iter().enumerate().for_each(|(at, integer)| words.set(first + at, *integer));
            integers.fill(0);
        }
        words.set(update.len(), i64::from(weight));
        Ok(Encoded { words, clamped })
    }

    /// All that is agreed on, for the session's digest.
    pub(crate) fn canonical(&self) -> Vec<u8> {
        let bounds = [self.bound.to_bits(), self.norm.map_or(0, f32::to_bits), self.max_weight];
        let mut bytes = vec![self.bits, self.precision];
        bounds.iter().for_each(|bound| bytes.extend(bound.to_le_bytes()));
        bytes.extend(self.headroom.to_le_bytes());
        bytes.extend(self.noise.to_le_bytes());
        bytes
    }
}

impl Rounding<'_> {
    fn round(&mut self, value: f64) -> i64 {
        match self {
            Self::Nearest => value.round() as i64,
            // 53 random bits: a uniform number below 1.
            Self::Stochastic(rng) => {
                (value + (rng.next_u64() >> 11) as f64 * (-53.0f64).exp2()).floor() as i64
            }
        }
    }
}

/// The sum of a cohort's updates.
#[derive(Debug, Clone, PartialEq)]
pub struct Sum {
    pub(crate) encoding: Encoding,
    pub(crate) words: Words,
}

impl Sum {
    /// The sums of all values' integers, and the sum of weights as the last.
    pub fn integers(&self) -> impl Iterator<Item = i64> + '_ {
        self.words.integers()
    }

    /// Sum of weights.
    pub fn weight(&self) -> u64 {
        self.words.integers().last().unwrap_or(0).max(0) as u64
    }

    /// The mean of the updates, weighted; zeros if all weights together are none, which noise or a liar can bring about.
    pub fn mean(&self) -> Vec<f32> {
        let unit = match self.weight() {
            0 => 0.0,
            weight => 1.0 / (self.encoding.scale() * weight as f64),
        };
        self.words
            .integers()
            .take(self.words.len() - 1)
            .map(|integer| (integer as f64 * unit) as f32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    fn integers(encoding: &Encoding, update: &[f32], weight: u32) -> Vec<i64> {
        encoding.encode(update, weight, Rounding::Nearest, None).unwrap().words.integers().collect()
    }

    #[test]
    fn bits_are_as_many_as_needed() {
        // 10 x 2^16 is below 2^20; one bit more for the sign.
        assert_eq!(Encoding::fit(10, 1.0, 16, 1, 0).unwrap().bits, 21);
        // 2^3 x 2^16 is 2^19 itself, which 20 bits do not hold with both signs.
        assert_eq!(Encoding::fit(8, 1.0, 16, 1, 0).unwrap().bits, 21);
        assert_eq!(Encoding::fit(7, 1.0, 16, 1, 0).unwrap().bits, 20);
        assert_eq!(Encoding::fit(7, 1.0, 16, 1, 1 << 30).unwrap().bits, 32);
        assert_eq!(Encoding::fit(1000, 1.0, 16, 4096, 0).unwrap().bits, 39);
        assert_eq!(Encoding::fit(2, 1.0, 0, 1, 0).unwrap().bits, 8);
        assert!(matches!(Encoding::fit(1000, 1.0, 50, 4096, 0), Err(ParamsError::Wraps { needed: 73, .. })));
        assert!(matches!(Encoding::fit(1000, 1.0, 255, u32::MAX, u64::MAX), Err(ParamsError::Wraps { .. })));
        assert_eq!(Encoding::fit(10, 1.0, 16, 0, 0), Err(ParamsError::Weight));
        // 8 x 2^16, and 16 deviations of the sum of eight parts of 26,851.
        let private = Encoding::private(8, 55_000, 0.5, 16, 1.0, 6).unwrap();
        assert_eq!((private.noise, private.headroom, private.bits), (26_851, 1_215_138, 22));
        for bound in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(Encoding::fit(10, bound, 16, 1, 0), Err(ParamsError::Bound(_))));
        }
    }

    #[test]
    fn values_are_scaled_clamped_and_weighted() {
        let encoding = Encoding::fit(4, 2.0, 4, 10, 0).unwrap();
        assert_eq!(integers(&encoding, &[0.0, 1.0, -2.0, 5.0, 0.06, -0.07], 3), [0, 24, -48, 48, 1, -2, 3]);
        assert_eq!(encoding.encode(&[1.0, 3.0, -3.0], 1, Rounding::Nearest, None).unwrap().clamped, 2);
        let clipped = Encoding { norm: Some(1.0), ..encoding };
        assert_eq!(integers(&clipped, &[3.0, -4.0], 10), [48, -64, 10]);
        assert_eq!(integers(&clipped, &[0.0, 0.0], 10), [0, 0, 10]);
    }

    #[test]
    fn what_is_no_update_is_refused() {
        let encoding = Encoding::fit(4, 2.0, 4, 10, 0).unwrap();
        for weight in [0, 11] {
            let error = encoding.encode(&[1.0], weight, Rounding::Nearest, None).err();
            assert_eq!(error, Some(EncodeError::Weight { weight, max: 10 }));
        }
        let error = encoding.encode(&[1.0, f32::INFINITY], 1, Rounding::Nearest, None).err();
        assert_eq!(error, Some(EncodeError::NotFinite { at: 1, value: f32::INFINITY }));
    }

    #[test]
    fn stochastic_rounding_is_right_in_the_mean() {
        let encoding = Encoding::fit(2, 1.0, 2, 1, 0).unwrap();
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        let update = vec![0.3; 100_000];
        let encoded = encoding.encode(&update, 1, Rounding::Stochastic(&mut rng), None).unwrap();
        let sum: i64 = encoded.words.integers().take(update.len()).sum();
        // 1.2 each: a coin of 1/5, standard deviation of the sum 126; five of them.
        assert!((sum - 120_000).abs() < 632, "{sum}");
        assert!(encoded.words.integers().all(|integer| (1..=2).contains(&integer)));
    }

    #[test]
    fn noise_gets_every_value_and_not_the_weight() {
        let encoding = Encoding::fit(2, 1.0, 8, 1, 1 << 20).unwrap();
        let mut seen = 0;
        let mut noise = |piece: &mut [i64]| {
            for integer in piece {
                *integer += 1000 + seen;
                seen += 1;
            }
        };
        let encoded = encoding.encode(&vec![0.0; 2500], 1, Rounding::Nearest, Some(&mut noise)).unwrap();
        assert!(encoded.words.integers().take(2500).eq(1000..3500));
        assert_eq!(encoded.words.integers().last(), Some(1));
    }

    proptest! {
        #[test]
        fn the_mean_of_a_sum_is_that_of_the_updates(
            updates in prop::collection::vec((prop::collection::vec(-1.0f32..1.0, 5), 1u32..200), 2..20),
        ) {
            let encoding = Encoding::fit(updates.len(), 1.0, 20, 200, 0).unwrap();
            let mut words = Words::zeros(encoding.bits, 6);
            for (update, weight) in &updates {
                let encoded = encoding.encode(update, *weight, Rounding::Nearest, None).unwrap();
                prop_assert!(words.add_packed(&encoded.words.pack()));
                prop_assert!(encoded.words.integers().count() == 6);
            }
            let total: u32 = updates.iter().map(|(_, weight)| weight).sum();
            let sum = Sum { encoding, words };
            prop_assert_eq!(sum.weight(), u64::from(total));
            for (at, mean) in sum.mean().iter().enumerate() {
                let expected: f64 = updates.iter().map(|(update, weight)| f64::from(update[at]) * f64::from(*weight)).sum();
                prop_assert!((f64::from(*mean) - expected / f64::from(total)).abs() < 2e-6);
            }
        }
    }
}
