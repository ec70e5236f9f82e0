//! Renyi differential privacy (Mironov 2017, arXiv 1702.07476).
//!
//! The Renyi divergence of order `a` between the outputs on neighbouring data adds up over releases, and bounds
//! epsilon at every delta. The sampled Gaussian mechanism is that of Mironov, Talwar and Zhang 2019 (arXiv 1908.10530)
//! for Poisson sampling, at every real order; samples of a fixed size are bounded by theorem 9 of Wang, Balle and
//! Kasiviswanathan 2019 (arXiv 1808.00087), at integer orders.

use std::f64::consts::{LN_2, SQRT_2};

use crate::{
    Mechanism, Sampling,
    special::{ln_add, ln_choose, ln_erfc, ln_sub},
};

/// Orders that are tried.
fn orders() -> impl Iterator<Item = f64> {
    let tenths = (1..100u32).map(|tenth| 1.0 + f64::from(tenth) / 10.0);
    let whole = (11..64u32).map(f64::from);
    tenths.chain(whole).chain([64.0, 80.0, 96.0, 128.0, 192.0, 256.0, 512.0, 1024.0])
}

/// The Renyi divergence of `order` > 1 of one release.
pub fn divergence(mechanism: &Mechanism, order: f64) -> f64 {
    let sigma = mechanism.sigma();
    let gaussian = |order: f64| order / (2.0 * sigma * sigma);
    let rate = mechanism.sampling().rate();
    if rate == 1.0 {
        return gaussian(order);
    }
    let moment = match mechanism.sampling() {
        Sampling::Poisson { .. } if order.fract() == 0.0 && order <= 2048.0 => {
            poisson_integer(rate, sigma, order)
        }
        Sampling::Poisson { .. } => poisson_real(rate, sigma, order),
        Sampling::FixedSize { .. } => return fixed_size(rate, order, gaussian),
    };
    // Sampling never costs more than none.
    (moment / (order - 1.0)).clamp(0.0, gaussian(order))
}

/// ln of the moment of an integer order: equation 4 of section 3.3.
fn poisson_integer(rate: f64, sigma: f64, order: f64) -> f64 {
    // Exact: orders are small integers.
    let order = order as u32;
    (0..=order).fold(f64::NEG_INFINITY, |sum, i| {
        let (i_, rest) = (f64::from(i), f64::from(order - i));
        let term = ln_choose(order, i) + i_ * rate.ln() + rest * (-rate).ln_1p();
        ln_add(sum, term + i_ * (i_ - 1.0) / (2.0 * sigma * sigma))
    })
}

/// ln of the moment of a real order: the two alternating series of section 3.3.
fn poisson_real(rate: f64, sigma: f64, order: f64) -> f64 {
    let z = sigma * sigma * (1.0 / rate - 1.0).ln() + 0.5;
    let (ln_in, ln_out) = (rate.ln(), (-rate).ln_1p());
    let mut sums = [f64::NEG_INFINITY; 2];
    // Binomial coefficient of the order and i, by its logarithm and sign.
    let (mut ln_coefficient, mut positive) = (0.0, true);
    for i in (0..10_000u32).map(f64::from) {
        let j = order - i;
        let gauss = |n: f64| n * (n - 1.0) / (2.0 * sigma * sigma);
        let terms = [
            ln_coefficient + i * ln_in + j * ln_out + gauss(i) + ln_erfc((i - z) / (SQRT_2 * sigma)) - LN_2,
            ln_coefficient + j * ln_in + i * ln_out + gauss(j) + ln_erfc((z - j) / (SQRT_2 * sigma)) - LN_2,
        ];
        for (sum, term) in sums.iter_mut().zip(terms) {
            *sum = if positive { ln_add(*sum, term) } else { ln_sub(*sum, term) };
        }
        if i > order && terms[0].max(terms[1]) < -30.0 {
            return ln_add(sums[0], sums[1]);
        }
        ln_coefficient += (j.abs() / (i + 1.0)).ln();
        positive ^= j < 0.0;
    }
    // It has not converged: nothing is known of this order.
    f64::INFINITY
}

/// Theorem 9, for a mechanism without a bound on its loss.
fn fixed_size(rate: f64, order: f64, gaussian: impl Fn(f64) -> f64) -> f64 {
    if order < 2.0 {
        // Divergences grow with their order.
        return fixed_size(rate, 2.0, gaussian);
    }
    let order = order.ceil();
    let second = (4.0 * gaussian(2.0).exp_m1()).ln().min(gaussian(2.0) + LN_2);
    // Exact: orders are small integers.
    let whole = order as u32;
    let sum = (2..=whole).fold(0.0, |sum, j| {
        let j_ = f64::from(j);
        let factor = if j == 2 { second } else { (j_ - 1.0) * gaussian(j_) + LN_2 };
        ln_add(sum, j_ * rate.ln() + ln_choose(whole, j) + factor)
    });
    (sum / (order - 1.0)).min(gaussian(order))
}

/// The least epsilon at `delta` of all these releases: proposition 12 of Canonne, Kamath and Steinke 2020
/// (arXiv 2004.00010), at the best of many orders.
pub fn epsilon(releases: &[(Mechanism, u64)], delta: f64) -> f64 {
    let of_order = |order: f64| {
        let divergence = total(releases, order);
        divergence + (-1.0 / order).ln_1p() - (delta.ln() + order.ln()) / (order - 1.0)
    };
    orders().map(of_order).fold(f64::INFINITY, f64::min).max(0.0)
}

/// The least delta at `epsilon` of all these releases.
pub fn delta(releases: &[(Mechanism, u64)], epsilon: f64) -> f64 {
    let of_order = |order: f64| {
        let divergence = total(releases, order);
        ((order - 1.0) * (divergence - epsilon + (-1.0 / order).ln_1p()) - order.ln()).exp()
    };
    orders().map(of_order).fold(1.0, f64::min)
}

fn total(releases: &[(Mechanism, u64)], order: f64) -> f64 {
    releases.iter().map(|(mechanism, count)| *count as f64 * divergence(mechanism, order)).sum()
}
