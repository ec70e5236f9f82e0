//! How far the discrete Gaussian is from the continuous one that accountants compute with.
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::f64::consts::SQRT_2;

/// Delta at `epsilon` of continuous noise of `z` times what a neighbour moves (Balle and Wang 2018, arXiv 1805.06530).
fn continuous(z: f64, epsilon: f64) -> f64 {
    let cdf = |x: f64| 0.5 * libm::erfc(-x / SQRT_2);
    cdf(0.5 / z - epsilon * z) - epsilon.exp() * cdf(-0.5 / z - epsilon * z)
}

fn mass(x: i64, sigma: f64) -> f64 {
    (-(x as f64).powi(2) / (2.0 * sigma * sigma)).exp()
}

/// That of discrete noise on integers that a neighbour moves by `shift`, summed over all outcomes.
fn discrete<const D: usize>(sigma: f64, shift: [i64; D], epsilon: f64) -> f64 {
    let reach = (9.0 * sigma) as i64;
    let whole: f64 = (-reach..=reach).map(|x| mass(x, sigma)).sum();
    // One value's likelihoods with and without the shift, by outcome.
    let likelihoods = |shift: i64| {
        (-reach..=reach + shift).map(move |x| (mass(x - shift, sigma) / whole, mass(x, sigma) / whole))
    };
    let mut outcomes = vec![(1.0, 1.0)];
    for shift in shift {
        let value: Vec<_> = likelihoods(shift).collect();
        outcomes =
            outcomes.iter().flat_map(|(p, q)| value.iter().map(move |(r, s)| (p * r, q * s))).collect();
    }
    outcomes.iter().map(|(p, q)| (p - epsilon.exp() * q).max(0.0)).sum()
}

/// With one value the curves differ by a part that falls with the square of the deviation: at the one in use, 2^20, by
/// 65,536 times less than at 2^12. With several values they differ less.
#[test]
fn deltas_of_discrete_noise_are_those_of_continuous_noise() {
    for (z, epsilon) in [(0.5, 1.0), (1.0, 0.5), (1.0, 3.0), (2.0, 1.0), (4.0, 1.0)] {
        let differs =
            |sigma: f64| discrete(sigma, [(sigma / z) as i64], epsilon) / continuous(z, epsilon) - 1.0;
        let (coarse, fine) = (differs(64.0), differs(4096.0));
        println!("z {z}, epsilon {epsilon}: {coarse:.1e} at 64, {fine:.1e} at 4096");
        assert!(coarse.abs() < 1e-3 && fine.abs() < 2e-7, "{coarse} {fine}");
        assert!((coarse / fine / 4096.0 - 1.0).abs() < 0.05, "{coarse} {fine}");
    }
    let z = 64.0 / (45f64 * 45.0 + 45.0 * 45.0).sqrt();
    let differs = discrete(64.0, [45, 45], 1.0) / continuous(z, 1.0) - 1.0;
    println!("two values: {differs:.1e}");
    assert!(differs.abs() < 6e-5, "{differs}");
}

/// Moments of the likelihood ratio of whole orders, of which Renyi divergences of samples are made, are equal.
#[test]
fn moments_of_whole_orders_are_equal() {
    for (sigma, shift) in [(4.0, 3), (16.0, 16), (64.0, 20)] {
        let reach = (60.0 * sigma) as i64;
        let whole: f64 = (-reach..=reach).map(|x| mass(x, sigma)).sum();
        for order in 2..12 {
            let order_ = f64::from(order);
            // E[(P/Q)^order] under Q, in logarithms of its terms.
            let term = |x: i64| {
                let (p, q) = (-((x - shift) as f64).powi(2), -(x as f64).powi(2));
                ((order_ * p + (1.0 - order_) * q) / (2.0 * sigma * sigma)).exp()
            };
            let moment = (-reach..=reach).map(term).sum::<f64>() / whole;
            let wanted = (order_ * (order_ - 1.0) * (shift * shift) as f64 / (2.0 * sigma * sigma)).exp();
            assert!((moment / wanted - 1.0).abs() < 1e-10, "{sigma} {shift} {order}: {moment} {wanted}");
        }
    }
}
