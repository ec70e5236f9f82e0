//! Seeded random draws that are the same on every platform.
//!
//! ChaCha8 fixes the bits; everything derived from them is here, on `u64` and on the pure-Rust `libm`,
//! because `usize`-based ranges and the system's `log` and `pow` differ between platforms and versions.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What the draws are for. Each purpose has its own stream, so that a change to one choice (more
/// validation examples, another partitioner) does not move the others.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Pool = 1,
    HeldOut = 2,
    Partition = 3,
    Split = 4,
    ClientHoldout = 5,
}

/// A stream of draws.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    pub(crate) fn new(seed: u64, purpose: Purpose) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8] = purpose as u8;
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in `0..bound`; 0 when `bound` is 0 or 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = bound as u64;
        if bound < 2 {
            return 0;
        }
        // Rejecting the incomplete last multiple of `bound` keeps every value equally likely.
        let usable = u64::MAX - u64::MAX % bound;
        loop {
            let bits = self.0.next_u64();
            if bits < usable {
                return (bits % bound) as usize;
            }
        }
    }

    /// Uniform in the open interval (0, 1): both ends are excluded so that logarithms stay finite.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// Fisher-Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }

    /// A draw from the symmetric Dirichlet distribution with `parts` parts of concentration `alpha`.
    ///
    /// Gamma variates are kept as logarithms: at a concentration of 0.01 and below they underflow.
    pub(crate) fn dirichlet(&mut self, alpha: f64, parts: usize) -> Vec<f64> {
        let logs: Vec<f64> = (0..parts).map(|_| self.log_gamma_variate(alpha)).collect();
        let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut shares: Vec<f64> = logs.iter().map(|log| libm::exp(log - largest)).collect();
        let total: f64 = shares.iter().sum();
        for share in &mut shares {
            *share /= total;
        }
        shares
    }

    /// Logarithm of a Gamma(`shape`, 1) variate, by Marsaglia and Tsang (2000); shapes below 1 are
    /// boosted: Gamma(a) = Gamma(a + 1) * U^(1/a).
    fn log_gamma_variate(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = libm::log(self.unit()) / shape;
            return self.log_gamma_variate(shape + 1.0) + boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / libm::sqrt(9.0 * d);
        loop {
            let normal = self.normal();
            let v = 1.0 + c * normal;
            if v <= 0.0 {
                continue;
            }
            let v = v * v * v;
            if libm::log(self.unit()) < 0.5 * normal * normal + d - d * v + d * libm::log(v) {
                return libm::log(d) + libm::log(v);
            }
        }
    }

    /// A standard normal variate, by Marsaglia's polar method.
    fn normal(&mut self) -> f64 {
        loop {
            let (x, y) = (2.0 * self.unit() - 1.0, 2.0 * self.unit() - 1.0);
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                return x * libm::sqrt(-2.0 * libm::log(square) / square);
            }
        }
    }

    /// An index drawn in proportion to `weights`; `None` when no weight is positive.
    pub(crate) fn weighted(&mut self, weights: &[f64]) -> Option<usize> {
        let total: f64 = weights.iter().sum();
        if total.is_nan() || total <= 0.0 {
            return None;
        }
        let mut left = self.unit() * total;
        let mut last = None;
        for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            last = Some(index);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_pinned() {
        // A change here changes every partition ever published with a seed.
        let mut draw = Draw::new(1, Purpose::Partition);
        let ints: Vec<_> = (0..6).map(|_| draw.below(1000)).collect();
        let shares: Vec<_> = draw.dirichlet(0.5, 3).iter().map(|x| format!("{x:.12}")).collect();
        assert_eq!(ints, [762, 249, 973, 73, 29, 561]);
        assert_eq!(shares, ["0.144740534270", "0.452189184215", "0.403070281515"]);
    }

    #[test]
    fn purposes_and_seeds_differ() {
        let first = |seed, purpose| Draw::new(seed, purpose).below(usize::MAX);
        assert_ne!(first(1, Purpose::Pool), first(1, Purpose::HeldOut));
        assert_ne!(first(1, Purpose::Pool), first(2, Purpose::Pool));
    }

    #[test]
    fn gamma_has_its_mean_and_variance() {
        let mut draw = Draw::new(7, Purpose::Partition);
        for shape in [0.1, 0.5, 1.0, 3.0] {
            let n = 40_000;
            let values: Vec<f64> = (0..n).map(|_| draw.log_gamma_variate(shape).exp()).collect();
            let mean = values.iter().sum::<f64>() / f64::from(n);
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(n);
            assert!((mean - shape).abs() < 0.06 * shape.sqrt(), "mean {mean} of {shape}");
            assert!((variance - shape).abs() < 0.15 * shape.sqrt(), "variance {variance} of {shape}");
        }
    }

    #[test]
    fn tiny_concentrations_still_sum_to_one() {
        let mut draw = Draw::new(3, Purpose::Partition);
        for alpha in [1e-300, 1e-9, 1e-3, 1e9, 1e300] {
            let shares = draw.dirichlet(alpha, 10);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{alpha}: {shares:?}");
        }
    }
}
