//! Both accountants against Google's dp-accounting (`tests/golden/privacy.py`), closed forms and each other.
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::f64::consts::SQRT_2;

use fedpeft_privacy::{Accountant, Mechanism, PrivacyError, Sampling, delta, epsilon, noise_multiplier, rdp};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    rate: f64,
    noise_multiplier: f64,
    count: u64,
    delta: f64,
    rdp: f64,
    pld: f64,
    fixed_size: Option<f64>,
}

fn golden() -> Vec<Case> {
    serde_json::from_str(include_str!("../../../tests/golden/privacy.json")).unwrap()
}

fn poisson(rate: f64, noise: f64) -> Mechanism {
    Mechanism::new(Sampling::Poisson { rate }, noise).unwrap()
}

fn fixed_size(rate: f64, noise: f64) -> Mechanism {
    Mechanism::new(Sampling::FixedSize { rate }, noise).unwrap()
}

#[test]
fn epsilons_are_those_of_dp_accounting() {
    for case in golden() {
        let Case { rate, noise_multiplier, count, .. } = case;
        let releases = [(poisson(rate, noise_multiplier), count)];
        let rdp = epsilon(Accountant::Rdp, &releases, case.delta).unwrap();
        let prv = epsilon(Accountant::Prv, &releases, case.delta).unwrap();
        println!("{rate} {noise_multiplier} {count}: rdp {rdp} for {}, prv {prv} for {}", case.rdp, case.pld);
        assert!((rdp / case.rdp - 1.0).abs() < 2e-3, "{rdp} is not {}", case.rdp);
        // Both are upper bounds of the same number, with errors of their own.
        assert!((-2e-3..1e-2).contains(&(prv / case.pld - 1.0)), "{prv} is not {}", case.pld);
        let spent = delta(Accountant::Prv, &releases, prv).unwrap();
        assert!((0.9..1.1).contains(&(spent / case.delta)), "{spent} is not {}", case.delta);
    }
}

/// dp-accounting uses the tighter theorem 27 of the same paper, by forward differences; theorem 9 may only be above.
#[test]
fn samples_of_a_fixed_size_are_bounded() {
    for case in golden() {
        let Some(wanted) = case.fixed_size else { continue };
        let mechanism = fixed_size(case.rate, case.noise_multiplier);
        let bound = epsilon(Accountant::Rdp, &[(mechanism, case.count)], case.delta).unwrap();
        println!("{} {}: {bound} for {wanted}", case.rate, case.noise_multiplier);
        assert!(bound > 0.999 * wanted && bound < 1.25 * wanted, "{bound} and {wanted}");
        let prv = epsilon(Accountant::Prv, &[(mechanism, case.count)], case.delta).unwrap();
        println!("    prv {prv}");
        assert!(prv <= bound, "{prv} {bound}");
    }
}

fn cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / SQRT_2)
}

/// Delta at `epsilon` of the Gaussian mechanism (Balle and Wang 2018, arXiv 1805.06530, theorem 8).
fn gaussian_delta(sigma: f64, epsilon: f64) -> f64 {
    let (half, scaled) = (0.5 / sigma, epsilon * sigma);
    cdf(half - scaled) - epsilon.exp() * cdf(-half - scaled)
}

/// That of one release on a sample of a fixed size, at any epsilon.
fn fixed_size_delta(rate: f64, noise: f64, epsilon: f64) -> f64 {
    if epsilon < 0.0 {
        return 1.0 - epsilon.exp() + epsilon.exp() * fixed_size_delta(rate, noise, -epsilon);
    }
    rate * gaussian_delta(noise / 2.0, (epsilon.exp_m1() / rate).ln_1p())
}

/// One release has a closed form. Of two, `delta(e)` is the mean of that of one at `e - l` over the other one's loss `l`,
/// whose distribution follows from the closed form: `P(l > e) = delta(e) - delta'(e)`.
#[test]
fn samples_of_a_fixed_size_are_as_integrated() {
    for (rate, noise, at) in
        [(0.1, 2.0, 0.5), (0.3, 1.5, 1.0), (0.05, 4.0, 0.2), (0.9, 3.0, 1.5), (1.0, 4.0, 1.0)]
    {
        let mechanism = fixed_size(rate, noise);
        let one = |epsilon: f64| fixed_size_delta(rate, noise, epsilon);
        let got = delta(Accountant::Prv, &[(mechanism, 1)], at).unwrap();
        assert!((0.999..1.02).contains(&(got / one(at))), "{rate} {noise}: {got} is not {}", one(at));

        // There is a kink at zero, where a loss of zero has a probability of its own.
        let tail = |epsilon: f64| one(epsilon) - (one(epsilon + 1e-6) - one(epsilon)) / 1e-6;
        let (cells, reach) = (40_000, 20.0);
        let edge = |cell: i32| f64::from(cell) * reach / f64::from(cells);
        let below_zero = tail(-2e-6);
        let continuous: f64 = (-cells..cells)
            .map(|cell| {
                let (low, high) = (edge(cell), edge(cell + 1));
                let upper = if cell == -1 { below_zero } else { tail(high) };
                (tail(low) - upper) * one(at - (low + high) / 2.0)
            })
            .sum();
        let two = continuous + (below_zero - tail(0.0)) * one(at);
        let got = delta(Accountant::Prv, &[(mechanism, 2)], at).unwrap();
        println!("{rate} {noise}: {got} for {two}");
        assert!((0.995..1.02).contains(&(got / two)), "{rate} {noise}: {got} is not {two}");
    }
}

/// Without sampling, k releases are one with noise over the root of k, whose delta Balle and Wang 2018
/// (arXiv 1805.06530) give in closed form.
#[test]
fn unsampled_releases_are_the_gaussian_mechanism() {
    for (noise, count, at) in [(5.0, 20u32, 1.0), (10.0, 4, 0.5), (20.0, 1, 0.05), (4.0, 50, 3.0)] {
        let sigma = noise / f64::from(count).sqrt();
        let wanted = gaussian_delta(sigma, at);
        let got = delta(Accountant::Prv, &[(poisson(1.0, noise), u64::from(count))], at).unwrap();
        assert!((0.999..1.05).contains(&(got / wanted)), "{noise} {count}: {got} is not {wanted}");
    }
}

/// Losses of different releases add up: two kinds cost more than either alone, and as much as all together where both
/// are one.
#[test]
fn releases_of_several_kinds_compose() {
    let (cheap, dear) = (poisson(0.05, 2.0), poisson(0.1, 1.5));
    for accountant in [Accountant::Rdp, Accountant::Prv] {
        let of = |releases: &[(Mechanism, u64)]| epsilon(accountant, releases, 1e-5).unwrap();
        let both = of(&[(cheap, 30), (dear, 20)]);
        assert!(both > of(&[(dear, 20)]) && both > of(&[(cheap, 30)]), "{accountant}");
        let (split, whole) = (of(&[(dear, 12), (dear, 8)]), of(&[(dear, 20)]));
        assert!((split / whole - 1.0).abs() < 1e-4, "{accountant}: {split} {whole}");
        assert_eq!(of(&[(dear, 0)]), 0.0);
    }
}

#[test]
fn calibrated_noise_keeps_to_the_budget_and_less_does_not() {
    // The paper's budget: epsilon 5 at delta 1e-3, 8 of 64 clients in each of 50 rounds.
    let sampling = Sampling::Poisson { rate: 0.125 };
    for accountant in [Accountant::Rdp, Accountant::Prv] {
        let noise = noise_multiplier(accountant, sampling, 50, 5.0, 1e-3).unwrap();
        let spent =
            |noise| epsilon(accountant, &[(Mechanism::new(sampling, noise).unwrap(), 50)], 1e-3).unwrap();
        println!("{accountant}: {noise}");
        assert!(spent(noise) <= 5.0 && spent(0.998 * noise) > 5.0, "{accountant}: {noise}");
    }
    for accountant in [Accountant::Rdp, Accountant::Prv] {
        let of = |sampling| noise_multiplier(accountant, sampling, 50, 5.0, 1e-3).unwrap();
        let (fixed, random) = (of(Sampling::FixedSize { rate: 0.125 }), of(sampling));
        println!("{accountant}: {fixed} of a fixed size");
        assert!(fixed > 1.5 * random, "replacing one is the stronger promise: {fixed} {random}");
    }
}

#[test]
fn numbers_that_make_no_sense_are_named() {
    for rate in [0.0, -0.1, 1.1, f64::NAN] {
        assert!(matches!(Mechanism::new(Sampling::Poisson { rate }, 1.0), Err(PrivacyError::Rate(_))));
    }
    let half = Sampling::Poisson { rate: 0.5 };
    for noise in [0.0, -1.0, f64::INFINITY, f64::NAN] {
        assert!(matches!(Mechanism::new(half, noise), Err(PrivacyError::NoiseMultiplier(_))));
    }
    let releases = [(poisson(0.1, 1.0), 1)];
    for bad in [0.0, 1.0, f64::NAN] {
        assert!(matches!(epsilon(Accountant::Rdp, &releases, bad), Err(PrivacyError::Delta(_))));
    }
    for bad in [0.0, f64::INFINITY, f64::NAN] {
        assert!(matches!(delta(Accountant::Prv, &releases, bad), Err(PrivacyError::Epsilon(_))));
    }
    for accountant in [Accountant::Rdp, Accountant::Prv] {
        let mixed = [(poisson(0.1, 1.0), 1), (fixed_size(0.1, 1.0), 1)];
        assert_eq!(epsilon(accountant, &mixed, 1e-5), Err(PrivacyError::Neighbours));
        assert_eq!(delta(accountant, &mixed, 1.0), Err(PrivacyError::Neighbours));
    }
    let all = Sampling::Poisson { rate: 1.0 };
    let hopeless = noise_multiplier(Accountant::Rdp, all, u64::MAX, 1e-3, 1e-9);
    assert!(matches!(hopeless, Err(PrivacyError::Budget(..))));
    assert_eq!("prv".parse(), Ok(Accountant::Prv));
    assert!("moments".parse::<Accountant>().unwrap_err().contains("rdp or prv"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn more_releases_more_of_the_clients_and_less_noise_cost_more(
        rate in 0.001f64..0.5, noise in 0.6f64..8.0, count in 1u64..200, more in 1.01f64..1.8,
    ) {
        let delta = 1e-5;
        for accountant in [Accountant::Rdp, Accountant::Prv] {
            for kind in [poisson, fixed_size] {
                let of = |rate, noise, count| epsilon(accountant, &[(kind(rate, noise), count)], delta).unwrap();
                let base = of(rate, noise, count);
                // The grid's own error.
                let slack = 0.995 * base;
                prop_assert!(of((rate * more).min(1.0), noise, count) >= slack);
                prop_assert!(of(rate, noise / more, count) >= slack);
                prop_assert!(of(rate, noise, (count as f64 * more).ceil() as u64) >= slack);
            }
        }
    }

    #[test]
    fn the_tighter_accountant_is_never_above(rate in 0.001f64..1.0, noise in 0.6f64..8.0, count in 1u64..100) {
        let of = |mechanism| {
            let releases = [(mechanism, count)];
            [Accountant::Rdp, Accountant::Prv].map(|accountant| epsilon(accountant, &releases, 1e-5).unwrap())
        };
        let ([rdp, prv], fixed) = (of(poisson(rate, noise)), of(fixed_size(rate, noise)));
        prop_assert!(prv <= rdp, "{} {}", prv, rdp);
        prop_assert!(fixed[1] <= fixed[0], "{:?}", fixed);
        // One replaced is one fewer and one more.
        prop_assert!(fixed[1] >= 0.99 * prv, "{} {}", fixed[1], prv);
    }

    #[test]
    fn divergences_grow_with_their_order(rate in 0.001f64..0.5, noise in 0.6f64..8.0, order in 1.1f64..60.0) {
        let mechanism = poisson(rate, noise);
        let (low, high) = (rdp::divergence(&mechanism, order), rdp::divergence(&mechanism, order + 0.5));
        prop_assert!(low <= high * (1.0 + 1e-6) + 1e-12, "{} {}", low, high);
    }
}
