//! What a private round releases: the mean of clipped updates with noise of the deviation that was asked for.
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::io::Cursor;

use fedpeft_codec::{Layout, TensorSpec, encode};
use fedpeft_privacy::{NoiseSecret, NoiseStream};
use fedpeft_strategy::ClippedSum;

const VALUES: usize = 300_000;

fn spool(seed: f32) -> Cursor<Vec<u8>> {
    Cursor::new(encode(&(0..VALUES).map(|at| (at as f32 * seed).sin()).collect::<Vec<_>>()).into())
}

fn sum(clip: f64, noise_multiplier: f64) -> ClippedSum {
    let spec = TensorSpec { name: "w".into(), shape: vec![VALUES as u64] };
    ClippedSum::new(Layout::new(vec![spec]).unwrap(), clip, noise_multiplier).unwrap()
}

fn release(sum: &ClippedSum, divisor: f64, noise: &mut dyn FnMut(&mut [i64])) -> Vec<f64> {
    let mut released = Vec::new();
    let mut each = |chunk: &[f64]| {
        released.extend_from_slice(chunk);
        Ok(())
    };
    sum.each_mean(&mut spool(0.3), divisor, noise, &mut each).unwrap();
    released
}

fn noise(round: &str) -> impl FnMut(&mut [i64]) {
    let mut stream = NoiseStream::new(&NoiseSecret::from([9; 32]), &["run", round]);
    move |out| stream.fill(out)
}

/// Mean and variance of what the noise adds to every value.
fn moments(released: &[f64], exact: &[f64]) -> (f64, f64) {
    let differences: Vec<f64> = released.iter().zip(exact).map(|(noised, exact)| noised - exact).collect();
    let mean = differences.iter().sum::<f64>() / VALUES as f64;
    let variance = differences.iter().map(|difference| (difference - mean).powi(2)).sum::<f64>();
    (mean, variance / VALUES as f64)
}

#[test]
fn the_noise_has_the_deviation_that_was_asked_for() {
    for (clip, multiplier, divisor, updates) in
        [(1.0, 1.1, 8.0, 5), (0.01, 0.3, 1.0, 1), (30.0, 4.0, 64.0, 0)]
    {
        let mut sum = sum(clip, multiplier);
        for update in 0..updates {
            sum.add(&mut spool(0.1 + update as f32), &mut spool(0.3)).unwrap();
        }
        let exact = release(&sum, divisor, &mut |out| out.fill(0));
        let (mean, variance) = moments(&release(&sum, divisor, &mut noise("1")), &exact);
        let deviation = multiplier * clip / divisor;
        // Five standard deviations of either estimate.
        assert!(mean.abs() < 5.0 * deviation / (VALUES as f64).sqrt(), "{mean}");
        let ratio = variance / (deviation * deviation);
        assert!((ratio - 1.0).abs() < 5.0 * (2.0 / VALUES as f64).sqrt(), "{ratio}");
    }
}

#[test]
fn a_release_can_be_computed_again() {
    let of = |order: [f32; 3], round: &str| {
        let mut sum = sum(1.0, 1.0);
        for seed in order {
            sum.add(&mut spool(seed), &mut spool(0.3)).unwrap();
        }
        let first = release(&sum, 3.0, &mut noise(round));
        assert_eq!(first, release(&sum, 3.0, &mut noise(round)));
        first
    };
    assert_eq!(of([0.1, 0.7, 2.0], "1"), of([2.0, 0.1, 0.7], "1"));
    assert_ne!(of([0.1, 0.7, 2.0], "1"), of([0.1, 0.7, 2.0], "2"));
}
