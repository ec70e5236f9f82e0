//! How many requests an endpoint takes: so many at once, and so many a second.

use std::time::Instant;

use crate::ApiError;

/// Bounds on the requests of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Requests it works on at once.
    pub concurrent: usize,
    /// Requests a second it takes for long.
    pub per_second: f64,
    /// Requests it takes at once after a rest.
    pub burst: f64,
}

impl Default for Limits {
    /// What no honest federation needs: a client asks a few times per run, a command once.
    fn default() -> Self {
        Self { concurrent: 64, per_second: 200.0, burst: 400.0 }
    }
}

/// A token bucket: it holds up to `burst` requests and fills by `per_second`.
pub(crate) struct Admission {
    limits: Limits,
    left: f64,
    filled: Instant,
}

impl Admission {
    pub fn new(limits: Limits) -> Self {
        Self { limits, left: limits.burst, filled: Instant::now() }
    }

    /// Whether one more request is taken while `running` are being worked on.
    pub fn admit(&mut self, running: usize) -> Result<(), ApiError> {
        self.admit_at(running, Instant::now())
    }

    fn admit_at(&mut self, running: usize, now: Instant) -> Result<(), ApiError> {
        let Limits { concurrent, per_second, burst } = self.limits;
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        (self.left, self.filled) = ((self.left + passed * per_second).min(burst), now);
        if running >= concurrent {
            return Err(ApiError::too_many(format!(
                "too many requests: {concurrent} are being worked on already; ask again later"
            )));
        }
        if self.left < 1.0 {
            return Err(ApiError::too_many(format!(
                "too many requests: {per_second} a second are taken; ask again later"
            )));
        }
        self.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_taken_then_a_rate() {
        let mut admission = Admission::new(Limits { concurrent: 2, per_second: 10.0, burst: 3.0 });
        let start = admission.filled;
        let mut taken = |milliseconds| {
            let now = start + Duration::from_millis(milliseconds);
            (0..100).take_while(|_| admission.admit_at(0, now).is_ok()).count()
        };
        assert_eq!([taken(0), taken(50), taken(250), taken(60_000), taken(60_000)], [3, 0, 2, 3, 0]);
    }

    #[test]
    fn what_is_at_work_bounds_what_is_taken() {
        let mut admission = Admission::new(Limits { concurrent: 2, ..Limits::default() });
        assert!(admission.admit(1).is_ok());
        let error = admission.admit(2).unwrap_err();
        assert_eq!(error.code, ApiError::TOO_MANY);
        assert!(error.message.contains("2 are being worked on"), "{error}");
    }
}
