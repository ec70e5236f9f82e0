//! What DP-SGD draws: the examples of a step, and noise. Both must be nobody's to foresee: who knows the sample has
//! no amplification to overcome, and who knows the noise takes it off again. So they come from the operating system's
//! entropy by ChaCha20, and no two trainings share any, a training that goes on from a snapshot included: the steps
//! that it makes again are others.

use fedpeft_protocol::run::{DpSgdSpec, ExampleSampling, TrainingSpec};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;
use rand_distr::StandardNormal;

use crate::{OrderSeed, RuntimeError};

/// A generator for one training.
pub(crate) struct Draws(ChaCha20Rng);

impl Draws {
    /// From entropy of the operating system.
    pub fn from_entropy() -> Result<Self, RuntimeError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| RuntimeError::Entropy(error.to_string()))?;
        Ok(Self(ChaCha20Rng::from_seed(seed)))
    }

    /// The same draws each time.
    #[cfg(test)]
    pub fn known(seed: u8) -> Self {
        Self(ChaCha20Rng::from_seed([seed; 32]))
    }

    /// Each of `0..count` with probability `rate`, independently.
    pub fn sample(&mut self, rate: f64, count: usize) -> Vec<usize> {
        (0..count).filter(|_| self.0.random::<f64>() < rate).collect()
    }

    /// Replaces `sum` by `(sum + noise) / divisor` with noise of this standard deviation on every value. It is drawn
    /// and added in f64 and rounded to f32 once.
    pub fn noise(&mut self, deviation: f64, divisor: f64, sum: &mut [f32]) {
        for value in sum {
            let noise: f64 = self.0.sample(StandardNormal);
            *value = (deviation.mul_add(noise, f64::from(*value)) / divisor) as f32;
        }
    }
}

/// A training by DP-SGD.
pub(crate) struct Private {
    pub draws: Draws,
    pub spec: DpSgdSpec,
    /// Size of a batch, in the mean where batches are drawn: what sums are divided by. The size of the batch at hand is
    /// something about the examples, and must not be.
    pub batch: usize,
    /// Most examples whose gradients are computed at once.
    pub micro_batch: usize,
    /// Sum of clipped gradients, flat.
    pub sum: Vec<f32>,
    /// Gradients of a micro-batch, flat.
    pub part: Vec<f32>,
    /// Examples whose gradients were computed, and of these, whose were clipped.
    pub seen: u64,
    pub clipped: u64,
}

impl Private {
    pub fn new(draws: Draws, spec: DpSgdSpec, training: &TrainingSpec, batch: usize) -> Self {
        let micro_batch = batch.div_ceil(training.accumulate.max(1) as usize).max(1);
        let (sum, part) = (Vec::new(), Vec::new());
        Self { draws, spec, batch, micro_batch, sum, part, seen: 0, clipped: 0 }
    }
}

/// The batches of a training, one after the other.
pub(crate) struct Batches<'a> {
    pub seed: OrderSeed<'a>,
    pub count: usize,
    pub batch: usize,
    /// The epoch of `order`, if there is one yet.
    epoch: Option<u32>,
    order: Vec<usize>,
}

impl<'a> Batches<'a> {
    pub fn new(seed: OrderSeed<'a>, count: usize, batch: usize) -> Self {
        Self { seed, count, batch, epoch: None, order: Vec::new() }
    }

    /// Steps of an epoch.
    pub fn per_epoch(&self) -> u64 {
        self.count.div_ceil(self.batch) as u64
    }

    /// The examples of step `step`, counted from 0: those of its place in the permutation of its epoch, or a sample.
    pub fn at(&mut self, step: u64, private: Option<&mut Private>) -> &[usize] {
        if let Some(private) = private.filter(|private| private.spec.sampling == ExampleSampling::Poisson) {
            self.order = private.draws.sample(self.batch as f64 / self.count as f64, self.count);
            return &self.order;
        }
        // No more epochs than their specification has a number for.
        let epoch = (step / self.per_epoch()) as u32;
        if self.epoch != Some(epoch) {
            (self.epoch, self.order) = (Some(epoch), self.seed.permutation(epoch, self.count));
        }
        let start = (step % self.per_epoch()) as usize * self.batch;
        &self.order[start..(start + self.batch).min(self.count)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_drawn_at_its_rate_and_independently() {
        let mut draws = Draws::known(1);
        let (rate, count, times) = (0.1, 50, 20_000);
        let (mut drawn, mut sizes, mut both, mut empty) = (vec![0u32; count], Vec::new(), 0, 0);
        for _ in 0..times {
            let sample = draws.sample(rate, count);
            assert!(sample.is_sorted() && sample.iter().all(|index| *index < count));
            sample.iter().for_each(|index| drawn[*index] += 1);
            both += u32::from(sample.starts_with(&[0, 1]));
            empty += u32::from(sample.is_empty());
            sizes.push(sample.len() as f64);
        }
        let times = f64::from(times);
        // Five standard deviations.
        let close = |seen: u32, probability: f64| {
            let deviation = (probability * (1.0 - probability) / times).sqrt();
            (f64::from(seen) / times - probability).abs() < 5.0 * deviation
        };
        assert!(drawn.iter().all(|seen| close(*seen, rate)), "{drawn:?}");
        assert!(close(both, rate * rate) && close(empty, (1.0 - rate).powi(count as i32)));
        let mean = sizes.iter().sum::<f64>() / times;
        let variance = sizes.iter().map(|size| (size - mean).powi(2)).sum::<f64>() / times;
        assert!((variance - 4.5).abs() < 0.3, "binomial sizes have variance 4.5, not {variance}");
        assert_eq!(draws.sample(1.0, 3), [0, 1, 2]);
    }

    #[test]
    fn noise_has_its_deviation_and_a_step_divides_it() {
        let mut values = vec![2.0f32; 200_000];
        Draws::known(2).noise(3.0, 4.0, &mut values);
        let count = values.len() as f64;
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
        let kurtosis =
            values.iter().map(|v| (f64::from(*v) - mean).powi(4)).sum::<f64>() / count / variance.powi(2);
        // Five standard deviations of each estimate.
        assert!((mean - 0.5).abs() < 5.0 * 0.75 / count.sqrt(), "{mean}");
        assert!((variance / 0.5625 - 1.0).abs() < 5.0 * (2.0 / count).sqrt(), "{variance}");
        assert!((kurtosis - 3.0).abs() < 5.0 * (24.0 / count).sqrt(), "{kurtosis}");
    }

    #[test]
    fn entropy_is_not_drawn_twice() {
        let noise = || {
            let mut values = [0.0; 4];
            Draws::from_entropy().unwrap().noise(1.0, 1.0, &mut values);
            values
        };
        assert_ne!(noise(), noise());
    }

    #[test]
    fn shuffled_batches_are_those_of_training_without_privacy() {
        let seed = OrderSeed { run: 1, round: 1, client: "c" };
        let mut batches = Batches::new(seed, 10, 4);
        assert_eq!(batches.per_epoch(), 3);
        for epoch in 0..2 {
            let order = seed.permutation(epoch, 10);
            for (at, wanted) in order.chunks(4).enumerate() {
                assert_eq!(batches.at(u64::from(epoch) * 3 + at as u64, None), wanted);
            }
        }
    }
}
