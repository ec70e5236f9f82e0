//! What a client remembers of its tasks: one that comes too late, or comes again, is not done.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fedpeft_protocol::{Epoch, Round, RunId, round::Task};
use fedpeft_service::now_ms;

/// Longest life of a task: longer ones are as good as endless.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// Runs that are remembered. With more the client begins anew, at the worst with a task that nobody waits for.
const RUNS: usize = 1000;

/// Tasks that a client has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The newest of each run.
    newest: BTreeMap<RunId, (Epoch, Round)>,
    /// Name of the last, and when it is too late for it.
    last: Option<(String, Instant)>,
    /// Name of the last whose update the broker has stored, and the message that it was in.
    answered: Option<(String, u64)>,
}

impl Seen {
    /// Remembers a task, unless a newer one of its run was seen: an owner that slept may send what its successor
    /// is done with. Whether it was remembered.
    pub fn admit(&mut self, task: &Task) -> bool {
        let place = (task.epoch, task.round);
        if self.newest.get(&task.run).is_some_and(|newest| *newest > place) {
            return false;
        }
        if self.newest.len() >= RUNS && !self.newest.contains_key(&task.run) {
            self.newest.clear();
        }
        self.newest.insert(task.run.clone(), place);
        true
    }

    /// When it is too late for `task`: its lifetime after it was first seen, whatever any clock of the day says.
    pub fn deadline(&mut self, task: &Task) -> Instant {
        if let Some((name, deadline)) = &self.last
            && *name == task.task
        {
            return *deadline;
        }
        let left = match task.lifetime_ms {
            0 => task.deadline_ms.saturating_sub(now_ms()),
            lifetime => lifetime,
        };
        let deadline = Instant::now() + Duration::from_millis(left).min(LONGEST);
        self.last = Some((task.task.clone(), deadline));
        deadline
    }

    /// The broker has the update of `task`, which came in the message of this sequence.
    pub fn answer(&mut self, task: &Task, sequence: u64) {
        self.answered = Some((task.task.clone(), sequence));
    }

    /// Whether the broker has the update of `task`, and this is the same message: one that was sent anew asks for it anew.
    pub fn has_answered(&self, task: &Task, sequence: u64) -> bool {
        self.answered.as_ref().is_some_and(|(name, answered)| *name == task.task && *answered == sequence)
    }
}

#[cfg(test)]
mod tests {
    use fedpeft_protocol::{
        Digest, PROTOCOL_VERSION,
        round::{Payload, Work},
    };

    use super::*;

    fn task(run: &str, epoch: Epoch, round: Round) -> Task {
        Task {
            version: PROTOCOL_VERSION,
            run: RunId::new(run).unwrap(),
            round,
            epoch,
            task: format!("{run}/{epoch}/{round}"),
            manifest: Digest::of("m"),
            adapter: Payload::inline(vec![]),
            work: Work::Evaluate,
            deadline_ms: 0,
            downlink: Default::default(),
            residual: None,
            lifetime_ms: 60_000,
        }
    }

    #[test]
    fn tasks_older_than_one_of_their_run_are_refused() {
        let mut seen = Seen::default();
        // The last is a round that failed and is resumed by another owner.
        for (run, epoch, round) in
            [("a", 1, 5), ("a", 1, 5), ("b", 1, 1), ("a", 1, 6), ("a", 2, 6), ("a", 3, 4)]
        {
            assert!(seen.admit(&task(run, epoch, round)), "{run} {epoch} {round}");
        }
        for (epoch, round) in [(1, 5), (2, 6), (2, 9), (3, 3)] {
            assert!(!seen.admit(&task("a", epoch, round)), "{epoch} {round}");
        }
        assert!(seen.admit(&task("a", 3, 4)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Seen::default();
        for run in 0..3 * RUNS {
            assert!(seen.admit(&task(&format!("r{run}"), 1, 1)));
        }
        assert!(seen.newest.len() <= RUNS);
    }

    #[test]
    fn a_task_that_comes_again_keeps_its_deadline() {
        let mut seen = Seen::default();
        let (first, second) = (task("a", 1, 1), task("a", 1, 2));
        let deadline = seen.deadline(&first);
        assert_eq!(seen.deadline(&first), deadline);
        seen.answer(&first, 7);
        assert!(seen.has_answered(&first, 7) && !seen.has_answered(&second, 7));
        assert!(!seen.has_answered(&first, 8), "sent anew");
        assert!(seen.deadline(&second) > deadline);
    }
}
