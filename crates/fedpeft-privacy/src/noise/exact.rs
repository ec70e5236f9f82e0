//! The discrete Gaussian of an integer standard deviation, exactly: Canonne, Kamath and Steinke 2020 (arXiv 2004.00010).
//!
//! Every decision is made by comparing random bits with integers; there is no float, whose rounding would favour some
//! values and leave others out. Two loops are cut where the probability to get there is below 2^-256, that of guessing
//! the secret: at [`MOST_FACTORS`] and [`MOST_WHOLE`].

use rand_chacha::rand_core::Rng;

/// Factors of a series; that many have a probability of 1/64! < 2^-295.
const MOST_FACTORS: u64 = 64;
/// Whole scales of a Laplace value; that many have a probability of e^-255 < 2^-367.
const MOST_WHOLE: u64 = 255;

/// One value of the discrete Gaussian of standard deviation `sigma`, 1 to 2^24: algorithm 3.
///
/// The Laplace values that it chooses among have the scale `sigma` itself. The proof holds for every scale, and with
/// this one the exponent is a fraction of small integers.
#[inline(always)]
pub(super) fn gaussian(bits: &mut impl Rng, sigma: u64) -> i64 {
    loop {
        let value = laplace(bits, sigma);
        // Below 2^32.
        let distance = value.unsigned_abs().abs_diff(sigma);
        if bernoulli_exp(bits, distance * distance, 2 * sigma * sigma) {
            return value;
        }
    }
}

/// One value of the discrete Laplace distribution, `P(x) ~ exp(-|x| / scale)`: algorithm 2. Below 256 `scale`.
#[inline(always)]
fn laplace(bits: &mut impl Rng, scale: u64) -> i64 {
    let mask = scale.next_power_of_two() - 1;
    loop {
        let word = bits.next_u64();
        let offset = word & mask;
        if offset >= scale || !bernoulli_exp_fraction(bits, offset, scale) {
            continue;
        }
        let mut whole = 0;
        while whole < MOST_WHOLE && bernoulli_exp_fraction(bits, 1, 1) {
            whole += 1;
        }
        let magnitude = (offset + scale * whole).cast_signed();
        match word >> 63 {
            0 => return magnitude,
            // Zero has one sign only, lest it come twice as often.
            _ if magnitude != 0 => return -magnitude,
            _ => {}
        }
    }
}

/// True with probability `exp(-numerator / denominator)`: algorithm 1. Denominators are at most 2^49.
#[inline(always)]
fn bernoulli_exp(bits: &mut impl Rng, numerator: u64, denominator: u64) -> bool {
    for _ in 0..numerator / denominator {
        if !bernoulli_exp_fraction(bits, 1, 1) {
            return false;
        }
    }
    bernoulli_exp_fraction(bits, numerator % denominator, denominator)
}

/// The same for an exponent of at most one.
#[inline(always)]
fn bernoulli_exp_fraction(bits: &mut impl Rng, numerator: u64, denominator: u64) -> bool {
    let mut factor = 1;
    while factor < MOST_FACTORS && bernoulli(bits, numerator, denominator * factor) {
        factor += 1;
    }
    factor % 2 == 1
}

/// True with probability `numerator / denominator`, at most one. Denominators are below 2^63.
///
/// A uniform number in [0, 1) is drawn 64 binary digits at a time, until they tell on which side of the fraction it is.
#[inline(always)]
fn bernoulli(bits: &mut impl Rng, mut numerator: u64, denominator: u64) -> bool {
    if numerator == denominator {
        return true;
    }
    loop {
        let wanted = u128::from(numerator) << 64;
        let least = u128::from(bits.next_u64()) * u128::from(denominator);
        if least >= wanted {
            return false;
        }
        let between = wanted - least;
        if between >= u128::from(denominator) {
            return true;
        }
        // Below the denominator.
        numerator = between as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;

    fn bits(seed: u8) -> ChaCha20Rng {
        ChaCha20Rng::from_seed([seed; 32])
    }

    /// Pearson's statistic of counts against probabilities, in standard deviations above its mean; cells that are
    /// expected fewer than ten times count as one.
    fn excess(cells: &[(f64, u64)]) -> f64 {
        let drawn: u64 = cells.iter().map(|(_, count)| count).sum();
        let (mut statistic, mut freedom) = (0.0, -1.0);
        let (mut rare, mut rare_count) = (0.0, 0);
        let mut add = |expected: f64, count: u64| {
            statistic += (count as f64 - expected).powi(2) / expected;
            freedom += 1.0;
        };
        for (probability, count) in cells {
            let expected = probability * drawn as f64;
            if expected < 10.0 {
                (rare, rare_count) = (rare + expected, rare_count + count);
            } else {
                add(expected, *count);
            }
        }
        if rare >= 10.0 {
            add(rare, rare_count);
        }
        assert!(freedom > 0.0);
        (statistic - freedom) / (2.0 * freedom).sqrt()
    }

    #[test]
    fn small_deviations_have_the_mass_function_of_the_discrete_gaussian() {
        for (seed, sigma) in [1u64, 2, 3, 5, 20].into_iter().enumerate() {
            let mut bits = bits(seed as u8);
            let mut counts = BTreeMap::new();
            for _ in 0..200_000 {
                *counts.entry(gaussian(&mut bits, sigma)).or_insert(0u64) += 1;
            }
            let reach = 40 * sigma as i64;
            let mass = |x: i64| (-(x as f64).powi(2) / (2.0 * (sigma * sigma) as f64)).exp();
            let whole: f64 = (-reach..=reach).map(mass).sum();
            let cells: Vec<_> =
                (-reach..=reach).map(|x| (mass(x) / whole, counts.get(&x).copied().unwrap_or(0))).collect();
            let excess = excess(&cells);
            println!("sigma {sigma}: {excess:.2}");
            assert!(excess.abs() < 4.0, "sigma {sigma}: {excess}");
        }
    }

    #[test]
    fn the_scale_in_use_has_the_distribution_and_the_moments_of_the_gaussian() {
        let sigma = super::super::SIGMA;
        let mut bits = bits(77);
        let drawn: Vec<_> = (0..400_000).map(|_| gaussian(&mut bits, sigma)).collect();
        // Cells of an eighth of a standard deviation.
        let width = sigma as i64 / 8;
        let cdf = |x: i64| 0.5 * libm::erfc(-(x as f64 - 0.5) / sigma as f64 / std::f64::consts::SQRT_2);
        let mut cells: Vec<_> =
            (-48..48).map(|cell| (cdf((cell + 1) * width) - cdf(cell * width), 0)).collect();
        for value in &drawn {
            cells[(value.div_euclid(width) + 48) as usize].1 += 1;
        }
        assert!(excess(&cells).abs() < 4.0, "{}", excess(&cells));
        let moment = |power: i32| {
            drawn.iter().map(|x| (*x as f64 / sigma as f64).powi(power)).sum::<f64>() / drawn.len() as f64
        };
        // Moments 0, 1, 0, 3 of variance (m_2k - m_k^2) / n: 1, 2, 15, 96; five standard deviations.
        for (power, wanted, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0f64)] {
            let slack = 5.0 * (variance / drawn.len() as f64).sqrt();
            assert!((moment(power) - wanted).abs() < slack, "moment {power} is {}", moment(power));
        }
        // The lowest bits are as good as even: nothing is rounded to a coarser grid.
        let odd = drawn.iter().filter(|x| *x % 2 != 0).count() as f64;
        assert!((odd - 200_000.0).abs() < 5.0 * 100_000f64.sqrt(), "{odd}");
    }

    #[test]
    fn decisions_have_the_probability_they_are_asked_for() {
        let (mut bits, draws) = (bits(5), 200_000);
        for (numerator, denominator) in
            [(0u64, 7u64), (1, 3), (5, 2), (1, 1), (9, 4), (1 << 40, (1 << 41) + 12345)]
        {
            let expected = (-(numerator as f64) / denominator as f64).exp();
            let share = (0..draws).filter(|_| bernoulli_exp(&mut bits, numerator, denominator)).count()
                as f64
                / f64::from(draws);
            let slack = 5.0 * (expected * (1.0 - expected) / f64::from(draws)).sqrt();
            assert!((share - expected).abs() <= slack, "exp(-{numerator}/{denominator}): {share}");
        }
    }

    /// Words that were chosen, then zeros.
    struct Chosen(Vec<u64>);

    impl rand_chacha::rand_core::TryRng for Chosen {
        type Error = std::convert::Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
            Ok(self.next_u64() as u32)
        }

        fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
            Ok(if self.0.is_empty() { 0 } else { self.0.remove(0) })
        }

        fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), Self::Error> {
            Ok(())
        }
    }

    #[test]
    fn a_decision_goes_on_while_its_digits_do_not_tell() {
        // 1/3 is 0.0101..., in words of 64 digits 0x5555... again and again.
        let third = 0x5555_5555_5555_5555;
        for (words, wanted) in [
            (vec![third - 1], true),
            (vec![third + 1], false),
            (vec![third, third - 1], true),
            (vec![third, third, third + 1], false),
        ] {
            assert_eq!(bernoulli(&mut Chosen(words), 1, 3), wanted);
        }
        // Fractions of 64 digits end: what equals them is not below.
        assert!(!bernoulli(&mut Chosen(vec![1 << 63]), 1, 2));
        assert!(bernoulli(&mut Chosen(vec![(1 << 63) - 1]), 1, 2));
        assert!(bernoulli(&mut Chosen(vec![]), 3, 3) && !bernoulli(&mut Chosen(vec![]), 0, 3));
    }
}
