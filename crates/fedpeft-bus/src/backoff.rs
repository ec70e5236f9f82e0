//! Pauses between attempts.

use std::time::Duration;

/// Exponential back-off with full jitter: each pause is drawn uniformly between nothing and a bound that doubles,
/// so that many clients of a broker that comes back do not all come at once
/// ([AWS, "Exponential Backoff And Jitter"](https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/)).
#[derive(Debug, Clone)]
pub struct Backoff {
    bound: Duration,
    longest: Duration,
}

impl Default for Backoff {
    /// From 200 ms to 5 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(5))
    }
}

impl Backoff {
    /// The first pause is at most `first`, no pause longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { bound: first, longest }
    }

    /// How long to wait before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let bound = self.bound.min(self.longest);
        self.bound = bound.saturating_mul(2).min(self.longest);
        bound.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_under_a_bound_that_doubles() {
        let millis = Duration::from_millis;
        let mut sums = [Duration::ZERO; 5];
        for _ in 0..1_000 {
            let mut backoff = Backoff::new(millis(100), millis(700));
            for (sum, bound) in sums.iter_mut().zip([100, 200, 400, 700, 700]) {
                let pause = backoff.pause();
                assert!(pause <= millis(bound), "{pause:?} of at most {bound} ms");
                *sum += pause;
            }
        }
        // The mean of a uniform draw; its standard deviation over a thousand is a hundredth of the bound.
        for (sum, bound) in sums.iter().zip([100, 200, 400, 700, 700]) {
            let mean = sum.as_secs_f64();
            assert!((mean / f64::from(bound) - 0.5).abs() < 0.05, "{mean} s of {bound}");
        }
    }
}
