//! The privacy random variable of many releases, composed numerically (Gopi, Lee and Wutschitz 2021,
//! arXiv 2106.02848).
//!
//! The loss `Y = ln(P/Q)` of one release is put on a grid, such that its mean stays what it is; the loss of all
//! releases is the sum of independent ones, computed by FFT; then `delta(e) = E[(1 - exp(e - Y))+]`. Theorem 5.5 bounds what
//! the grid and its ends change, in epsilon and in delta. Both are added, so that the result is an upper bound: about
//! four thousandths of epsilon and one of delta above the exact values, more only where the grid would not fit.
//!
//! For Poisson sampling both neighbours are composed, one more and one fewer, and the worse one counts.
//!
//! For samples of a fixed size, one replaced by another, `delta(e)` of one release is at most `q delta'(e')`, with the
//! rate `q`, `exp(e') = 1 + (exp(e) - 1) / q` and `delta'` without sampling (Balle, Barthe and Gaboardi 2018,
//! arXiv 1807.01647, theorem 9); for `e < 0` the relation is symmetric. Such a curve has a loss (Zhu, Dong and Wang 2022,
//! arXiv 2106.08567, proposition 7), and losses of curves add up over releases that depend on one another (theorem 10): above
//! zero it is that of one client removed, below that of one added, with noise over twice the clipping norm, and what is
//! left is at zero. Neither half alone would do (Lebeda, Regehr, Kamath and Steinke 2024, arXiv 2405.20769).

use rustfft::{FftPlanner, num_complex::Complex};

use crate::{
    Mechanism, Sampling, rdp,
    special::{ln_normal_cdf, normal_cdf},
};

/// How far the grid may move epsilon, as a share of it. The result is up to twice that above the exact one, since the
/// grid may err both ways.
const EPSILON_ERROR: f64 = 2e-3;
/// The same for delta.
const DELTA_ERROR: f64 = 1e-3;
/// Most points of a grid: 64 MiB of complex numbers.
const MOST: f64 = (1 << 22) as f64;

/// How neighbours differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// One has a client more: the loss under it.
    Removed,
    /// The loss under the one without.
    Added,
    /// One client is replaced by another.
    Replaced,
}

/// P(loss of one release <= `loss`).
fn loss_cdf(rate: f64, sigma: f64, direction: Direction, loss: f64) -> f64 {
    // The loss ln(1 - rate + rate exp((2x - 1) / (2 sigma^2))) grows with x; this is where it is `at`.
    let x_of = |at: f64| {
        // ln(exp(at) - (1 - rate)) - ln(rate), without overflow at large losses.
        let excess = if at > 30.0 {
            at + (-(1.0 - rate) * (-at).exp()).ln_1p()
        } else {
            (at.exp() - (1.0 - rate)).ln()
        };
        sigma * sigma * (excess - rate.ln()) + 0.5
    };
    let least = (-rate).ln_1p();
    match direction {
        Direction::Removed if loss <= least => 0.0,
        Direction::Removed => {
            let x = x_of(loss);
            (1.0 - rate) * normal_cdf(x / sigma) + rate * normal_cdf((x - 1.0) / sigma)
        }
        Direction::Added if loss >= -least => 1.0,
        Direction::Added => ln_normal_cdf(-x_of(-loss) / sigma).exp(),
        Direction::Replaced => {
            let half = |direction| loss_cdf(rate, sigma, direction, loss);
            if loss < 0.0 {
                half(Direction::Added)
            } else if loss > 0.0 {
                half(Direction::Removed)
            } else {
                // The middle of the jump, as an integral over a cell around it takes it.
                (half(Direction::Removed) + half(Direction::Added)) / 2.0
            }
        }
    }
}

/// The losses of all releases on a grid.
struct Losses {
    /// Probabilities; index 0 is the loss `-(len / 2) step + shift`.
    masses: Vec<f64>,
    step: f64,
    shift: f64,
}

impl Losses {
    fn compose(releases: &[(f64, f64, u64)], direction: Direction, step: f64, points: usize) -> Self {
        let mut planner = FftPlanner::new();
        let (forward, inverse) = (planner.plan_fft_forward(points), planner.plan_fft_inverse(points));
        let mut product = vec![Complex::new(1.0, 0.0); points];
        let mut shift = 0.0;
        for (rate, sigma, count) in releases {
            let (masses, offset) = discretise(*rate, *sigma, direction, step, points);
            shift += offset * *count as f64;
            let mut spectrum: Vec<Complex<f64>> =
                masses.into_iter().map(|mass| Complex::new(mass, 0.0)).collect();
            forward.process(&mut spectrum);
            for (product, factor) in product.iter_mut().zip(&spectrum) {
                *product *= power(*factor, *count);
            }
        }
        inverse.process(&mut product);
        let mut masses: Vec<f64> = product.iter().map(|value| value.re / points as f64).collect();
        // The grid begins at loss zero for the transform, and in its middle for us.
        masses.rotate_right(points / 2);
        Self { masses, step, shift }
    }

    fn delta(&self, epsilon: f64) -> f64 {
        let half = (self.masses.len() / 2) as f64;
        let delta: f64 = self
            .masses
            .iter()
            .enumerate()
            .map(|(at, mass)| (mass, (at as f64 - half) * self.step + self.shift))
            .filter(|(_, loss)| *loss > epsilon)
            .map(|(mass, loss)| mass * -(epsilon - loss).exp_m1())
            .sum();
        delta.clamp(0.0, 1.0)
    }
}

/// Masses of one release's loss at the multiples of `step`, loss zero first and negative ones from the end, and what to
/// add to them so that the mean is that of the loss itself.
fn discretise(rate: f64, sigma: f64, direction: Direction, step: f64, points: usize) -> (Vec<f64>, f64) {
    let half = (points / 2) as i64;
    let cdf = |at: f64| loss_cdf(rate, sigma, direction, at * step);
    let (first, last) = (-half, points as i64 - half);
    let start = cdf(first as f64 - 0.5);
    let whole = cdf(last as f64 - 0.5) - start;
    let mut masses = vec![0.0; points];
    let (mut below, mut on_grid, mut below_middle) = (start, 0.0, 0.0);
    for at in first..last {
        let above = cdf(at as f64 + 0.5);
        let mass = (above - below) / whole;
        masses[at.rem_euclid(points as i64) as usize] = mass;
        on_grid += mass * at as f64;
        // The integral of the distribution function, by Simpson's rule.
        below_middle += (below + 4.0 * cdf(at as f64) + above) / 6.0;
        below = above;
    }
    // E[Y] = b F(b) - a F(a) - integral of F from a to b, over the mass in between.
    let (low, high) = (first as f64 - 0.5, last as f64 - 0.5);
    let mean = (high * below - low * start - below_middle) / whole;
    (masses, (mean - on_grid) * step)
}

/// An integer power by squaring.
fn power(mut base: Complex<f64>, mut exponent: u64) -> Complex<f64> {
    let mut result = Complex::new(1.0, 0.0);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

/// All releases in all directions, with the errors that the grid allows for.
struct Composed {
    directions: Vec<Losses>,
    epsilon_error: f64,
    delta_error: f64,
}

impl Composed {
    /// Aims at these errors.
    fn new(releases: &[(Mechanism, u64)], epsilon_error: f64, delta_error: f64) -> Self {
        let plain = releases
            .iter()
            .map(|(mechanism, count)| (mechanism.sampling().rate(), mechanism.sigma(), *count));
        let plain: Vec<_> = plain.collect();
        let count = releases.iter().map(|(_, count)| *count as f64).sum::<f64>();
        // Where the loss is with all but a share of delta_error: of all releases, and of each.
        let of_one = |mechanism: &Mechanism| rdp::epsilon(&[(*mechanism, 1)], delta_error / (8.0 * count));
        let all = rdp::epsilon(releases, delta_error / 4.0);
        let largest = releases.iter().map(|(mechanism, _)| of_one(mechanism)).fold(all, f64::max);
        let extent = largest.max(epsilon_error) + 3.0;
        let steps_of_error = (count / 2.0 * (12.0 / delta_error).ln()).sqrt();
        let points = (2.0 * extent / (epsilon_error / steps_of_error)).min(MOST).ceil();
        let step = 2.0 * extent / points;
        let points = (points as usize).next_power_of_two();
        let replaced =
            releases.iter().all(|(mechanism, _)| matches!(mechanism.sampling(), Sampling::FixedSize { .. }));
        let directions: &[_] =
            if replaced { &[Direction::Replaced] } else { &[Direction::Removed, Direction::Added] };
        let directions =
            directions.iter().map(|direction| Losses::compose(&plain, *direction, step, points)).collect();
        Self { directions, epsilon_error: step * steps_of_error, delta_error }
    }

    /// An upper bound.
    fn delta(&self, epsilon: f64) -> f64 {
        let least = epsilon - self.epsilon_error;
        let worst = self.directions.iter().map(|losses| losses.delta(least)).fold(0.0, f64::max);
        (worst + self.delta_error).min(1.0)
    }
}

/// The least epsilon at `delta` of all these releases, all of one kind of sampling.
pub(crate) fn epsilon(releases: &[(Mechanism, u64)], delta: f64) -> f64 {
    let releases = counted(releases);
    let about = rdp::epsilon(&releases, delta);
    if releases.is_empty() || about == 0.0 {
        return 0.0;
    }
    // Both are upper bounds, so the smaller one is.
    let below = |about: f64| {
        let composed = Composed::new(&releases, about * EPSILON_ERROR, delta * DELTA_ERROR);
        let (mut low, mut high) = (0.0, about);
        while high - low > 1e-6 * high {
            let middle = (low + high) / 2.0;
            if composed.delta(middle) > delta { low = middle } else { high = middle }
        }
        high
    };
    let rough = below(about);
    // The error in epsilon is a share of the result, which RDP may say far too much of.
    if rough < about / 2.0 { below(rough) } else { rough }
}

/// The least delta at `epsilon` of all these releases, all of one kind of sampling.
pub(crate) fn delta(releases: &[(Mechanism, u64)], epsilon: f64) -> f64 {
    let releases = counted(releases);
    if releases.is_empty() {
        return 0.0;
    }
    let about = rdp::delta(&releases, epsilon);
    // The error in delta is a share of the result, which RDP only bounds: what it says too much is taken back once.
    let of = |about: f64| {
        Composed::new(&releases, epsilon * EPSILON_ERROR, (about * DELTA_ERROR).max(1e-18)).delta(epsilon)
    };
    let rough = of(about);
    rough.min(of(rough)).min(about)
}

fn counted(releases: &[(Mechanism, u64)]) -> Vec<(Mechanism, u64)> {
    releases.iter().filter(|(_, count)| *count > 0).copied().collect()
}
