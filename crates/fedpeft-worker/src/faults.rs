//! Simulated faults of one client in one round: only where the operator allows them, as `fedpeft simulate` does.

use std::time::Duration;

use fedpeft_protocol::{
    ClientId,
    round::{Task, Work},
};
use fedpeft_stability::{self as stability, Fate};

/// What is to happen to a task. By default nothing does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Faults {
    /// The client takes its task and is not heard of.
    pub drops_out: bool,
    /// It loses its memory.
    pub crash: Option<Crash>,
    /// Its answer is late by this.
    pub delay: Duration,
}

/// A simulated crash.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Crash {
    /// After this share of the steps.
    pub at: f64,
    /// Back after this.
    pub absence: Duration,
}

impl Faults {
    /// Those that `task` asks for.
    pub fn of(task: &Task, client: &ClientId) -> Self {
        let Work::Train { seed, stability: Some(spec), .. } = &task.work else { return Self::default() };
        let (seed, round) = (*seed, task.round);
        let fate = stability::fate(spec, seed, round, client);
        let crash = match fate {
            Fate::Crashes { at } => Some(Crash { at, absence: stability::absence(spec) }),
            Fate::Answers | Fate::DropsOut => None,
        };
        let delay = stability::delay(spec, seed, round, client);
        Self { drops_out: fate == Fate::DropsOut, crash, delay }
    }
}

impl Crash {
    /// The step before which it happens, of so many: the last at the latest.
    pub fn step(&self, planned: u64) -> u64 {
        // A conversion of floats to integers saturates.
        ((self.at * planned as f64) as u64).min(planned.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_within_the_training() {
        let at = |at| Crash { at, absence: Duration::ZERO };
        assert_eq!(at(0.0).step(10), 0);
        assert_eq!(at(0.55).step(10), 5);
        assert_eq!(at(0.999_999).step(10), 9);
        assert_eq!(at(0.5).step(0), 0);
        assert_eq!(at(0.999_999).step(u64::MAX), (0.999_999 * u64::MAX as f64) as u64);
    }
}
