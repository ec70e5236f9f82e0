//! Clipping at a quantile of the updates' norms (Andrew, Thakkar, McMahan and Ramaswamy 2021, arXiv 1905.03871).
//!
//! Each round also releases how many updates were within the clipping norm `C`, as a noised sum of +1/2 and -1/2, and
//! moves `C` by `exp(-learning_rate (share within - quantile))`. Update and count are one Gaussian release: with noise of
//! `z_update` clipping norms on the update and of `count_noise` on the count, whose part is at most 1/2, it costs what
//! one release with `z` does where `z^-2 = z_update^-2 + (2 count_noise)^-2` (their theorem 1).
//!
//! Counts are on a grid of integers as updates are, with the same exact noise.

use crate::noise::SIGMA;

/// Clipping norms stay between these.
const CLIP: (f64, f64) = (1e-9, 1e9);
/// Count noise for which the grid is fine enough.
const COUNT_NOISE: std::ops::RangeInclusive<f64> = 1e-3..=1e4;

/// Numbers that adapt no clipping norm.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AdaptiveError {
    /// The quantile.
    #[error("the quantile of the clipping norm is {0}: it is between 0 and 1, and 0.5 is the median")]
    Quantile(f64),
    /// The learning rate.
    #[error("the learning rate of the clipping norm is {0}: it is above 0, and 0.2 is usual")]
    LearningRate(f64),
    /// The noise of the count.
    #[error(
        "the noise of the count is {0}: it is between 1e-3 and 1e4, and a twentieth of the cohort is usual"
    )]
    CountNoise(f64),
    /// A count that costs more than all is to cost.
    #[error("the count alone costs more than a noise multiplier of {noise}: set its noise above {least}")]
    Budget {
        /// The multiplier of both releases together.
        noise: f64,
        /// What the count's noise has to be above.
        least: f64,
    },
}

/// How the clipping norm follows the updates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaptiveClip {
    quantile: f64,
    learning_rate: f64,
    count_noise: f64,
}

impl AdaptiveClip {
    /// Checks the share of updates that is to be within the norm, the step of its logarithm, and the standard deviation
    /// of the noise on the count.
    ///
    /// # Errors
    /// The one that is out of range.
    pub fn new(quantile: f64, learning_rate: f64, count_noise: f64) -> Result<Self, AdaptiveError> {
        if !(quantile > 0.0 && quantile < 1.0) {
            return Err(AdaptiveError::Quantile(quantile));
        }
        if !(learning_rate > 0.0 && learning_rate.is_finite()) {
            return Err(AdaptiveError::LearningRate(learning_rate));
        }
        if !COUNT_NOISE.contains(&count_noise) {
            return Err(AdaptiveError::CountNoise(count_noise));
        }
        Ok(Self { quantile, learning_rate, count_noise })
    }

    /// Noise multiplier of the update, such that it and the count cost what one release at `noise_multiplier` does. It
    /// is somewhat above that.
    ///
    /// # Errors
    /// [`AdaptiveError::Budget`].
    pub fn update_noise(&self, noise_multiplier: f64) -> Result<f64, AdaptiveError> {
        let left = noise_multiplier.powi(-2) - (2.0 * self.count_noise).powi(-2);
        if left > 0.0 && left.is_finite() {
            Ok(left.powf(-0.5))
        } else {
            Err(AdaptiveError::Budget { noise: noise_multiplier, least: noise_multiplier / 2.0 })
        }
    }

    /// Share of updates within the norm, with noise on it: released, and for anybody to see. `divisor` is the fixed size
    /// of a round that the update is divided by too; `noise` is one integer of [`crate::noise::NoiseStream::gaussian`].
    ///
    /// It may be below 0 or above 1. A round without updates has a half of them within, and noise.
    pub fn share_within(&self, within: u64, updates: u64, divisor: f64, noise: i64) -> f64 {
        // What an update adds or takes, rounded down: the noise covers it for certain.
        let half = self.half();
        let sum = (2 * i128::from(within) - i128::from(updates)) * half + i128::from(noise);
        0.5 + sum as f64 / (2 * half) as f64 / divisor
    }

    /// The clipping norm after `clip`, given a share of [`Self::share_within`]; kept between 1e-9 and 1e9.
    pub fn next(&self, clip: f64, share_within: f64) -> f64 {
        let step = -self.learning_rate * (share_within - self.quantile);
        (clip * step.exp()).clamp(CLIP.0, CLIP.1)
    }

    /// One half in steps of the grid, of which the noise has a deviation of [`SIGMA`]: at least 52.
    fn half(&self) -> i128 {
        (SIGMA as f64 / (2.0 * self.count_noise)).floor() as i128
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Accountant, Mechanism, Sampling, epsilon, noise::NoiseStream};
    use proptest::prelude::*;

    fn median(count_noise: f64) -> AdaptiveClip {
        AdaptiveClip::new(0.5, 0.2, count_noise).unwrap()
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        for bad in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(matches!(AdaptiveClip::new(bad, 0.2, 1.0), Err(AdaptiveError::Quantile(_))));
        }
        for bad in [0.0, -1.0, f64::INFINITY, f64::NAN] {
            assert!(matches!(AdaptiveClip::new(0.5, bad, 1.0), Err(AdaptiveError::LearningRate(_))));
        }
        for bad in [0.0, 1e-4, 1e5, f64::NAN] {
            assert!(matches!(AdaptiveClip::new(0.5, 0.2, bad), Err(AdaptiveError::CountNoise(_))));
        }
        let error = median(0.5).update_noise(1.0).unwrap_err();
        assert_eq!(error, AdaptiveError::Budget { noise: 1.0, least: 0.5 });
        assert!(error.to_string().contains("above 0.5"), "{error}");
    }

    #[test]
    fn a_count_noise_of_a_twentieth_of_the_cohort_costs_little() {
        // z = 1 and 100 clients: (1 - 1/100)^-1/2, half a percent more noise.
        assert!((median(5.0).update_noise(1.0).unwrap() - 1.005_037_8).abs() < 1e-6);
    }

    #[test]
    fn a_share_is_that_of_the_updates_and_its_noise_has_the_deviation_asked_for() {
        let clip = median(5.0);
        assert_eq!(clip.share_within(30, 40, 40.0, 0), 0.75);
        // A round that is not as large as expected counts from a half, as the paper's estimate does.
        assert_eq!(clip.share_within(30, 30, 40.0, 0), 0.5 + 15.0 / 40.0);
        assert_eq!(clip.share_within(0, 0, 40.0, 0), 0.5);
        let mut stream = NoiseStream::new(&[3; 32].into(), &["count"]);
        let draws = 40_000;
        let square: f64 = (0..draws)
            .map(|_| (clip.share_within(30, 40, 40.0, stream.gaussian()) - 0.75).powi(2))
            .sum::<f64>()
            / f64::from(draws);
        // Five standard deviations of a variance.
        let ratio = square / (5.0f64 / 40.0).powi(2);
        assert!((ratio - 1.0).abs() < 5.0 * (2.0 / f64::from(draws)).sqrt(), "{ratio}");
    }

    #[test]
    fn the_norm_finds_its_quantile() {
        // Norms 1 to 100: 80 of them are within 80.
        let clip = AdaptiveClip::new(0.8, 0.2, 5.0).unwrap();
        let mut stream = NoiseStream::new(&[4; 32].into(), &["norms"]);
        let mut norm = 0.1;
        for _ in 0..300 {
            let within = (1..=100).filter(|n| f64::from(*n) <= norm).count() as u64;
            norm = clip.next(norm, clip.share_within(within, 100, 100.0, stream.gaussian()));
        }
        assert!((70.0..90.0).contains(&norm), "{norm}");
        assert_eq!(clip.next(1e-9, 50.0), 1e-9);
        assert_eq!(clip.next(1e9, -50.0), 1e9);
    }

    /// Without sampling, Gaussian releases with `a` and `b` are one with `(a^-2 + b^-2)^-1/2`, to every accountant.
    #[test]
    fn both_releases_together_cost_what_one_does() {
        let (noise, count_noise) = (3.0, 4.0);
        let of = |noise| (Mechanism::new(Sampling::Poisson { rate: 1.0 }, noise).unwrap(), 10);
        let update = median(count_noise).update_noise(noise).unwrap();
        for accountant in [Accountant::Rdp, Accountant::Prv] {
            let one = epsilon(accountant, &[of(noise)], 1e-5).unwrap();
            let both = epsilon(accountant, &[of(update), of(2.0 * count_noise)], 1e-5).unwrap();
            assert!((both / one - 1.0).abs() < 1e-3, "{accountant}: {both} and {one}");
        }
    }

    proptest! {
        #[test]
        fn the_part_of_an_update_is_covered(count_noise in 1e-3f64..1e4, noise in 0.01f64..100.0) {
            let clip = median(count_noise);
            // The grid's own noise multiplier is never below twice the noise, nor far above.
            let grid = SIGMA as f64 / clip.half() as f64;
            prop_assert!(grid >= 2.0 * count_noise && grid < 2.04 * count_noise);
            if let Ok(update) = clip.update_noise(noise) {
                prop_assert!(update > noise);
                let both = (update.powi(-2) + (2.0 * count_noise).powi(-2)).powf(-0.5);
                prop_assert!((both / noise - 1.0).abs() < 1e-6, "{} {}", both, noise);
            }
        }

        #[test]
        fn more_updates_within_lower_the_norm(within in 0u64..100, clip in 1e-3f64..1e3) {
            let rule = median(5.0);
            let next = |within| rule.next(clip, rule.share_within(within, 100, 100.0, 0));
            prop_assert!(next(within + 1) < next(within));
            prop_assert_eq!(next(50), clip);
        }
    }
}
