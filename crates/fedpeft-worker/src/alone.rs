//! Whether another process speaks for the same client.
//!
//! Both would do its tasks, of which one update counts. For private training that is more than a waste: both updates are
//! released, and each process counts in its own account only what it has released itself. The client may not read its
//! presence, but it can tell whether the record that it replaces is the one that it wrote last.

use std::{sync::Arc, time::Duration};

use fedpeft_bus::CLIENT_TTL;
use tokio::{sync::watch, time::Instant};

/// Without a foreign record for so long, there is no other process: who lives renews its presence before it ends.
const QUIET: Duration = CLIENT_TTL;
/// Every so many heartbeats it is said again.
const SAY: u32 = 12;

/// When a client was last sure to be alone, for its tasks to see.
#[derive(Debug, Clone, Default)]
pub(crate) struct Alone(Arc<watch::Sender<Option<Instant>>>);

impl Alone {
    /// Whether the client is sure. Nobody is who has slept, or was cut off, for so long that another process may have found
    /// no record.
    pub fn is_sure(&self) -> bool {
        self.0.borrow().is_some_and(|at| at.elapsed() < QUIET)
    }
}

/// What the heartbeats of a client tell of others.
#[derive(Debug)]
pub(crate) struct Company {
    alone: Alone,
    /// When somebody else's record was last found; that may be the last of an earlier process.
    seen: Option<Instant>,
    /// Heartbeats that found one, since the client was last sure to be alone.
    times: u32,
}

impl Company {
    /// For a client whose next heartbeat is its first.
    pub fn new(alone: Alone) -> Self {
        Self { alone, seen: None, times: 0 }
    }

    /// Notes the heartbeat that was sent at `sent`, and whether it found the record of the one before, or none before the
    /// first. Returns whether it is time to say that there is another process: one that has died leaves a record that is
    /// found once.
    pub fn note(&mut self, is_ours: bool, sent: Instant) -> bool {
        if !is_ours {
            self.seen = Some(sent);
            self.times += 1;
        }
        let quiet = |seen: Instant| sent.saturating_duration_since(seen) >= QUIET;
        let is_alone = self.seen.is_none_or(quiet);
        if is_alone {
            self.times = 0;
        }
        self.alone.0.send_replace(is_alone.then_some(sent));
        !is_ours && self.times % SAY == 2
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// What heartbeats, five seconds apart, make of what they find: whether they say so, and whether the client is alone.
    async fn told(found: &[bool]) -> Vec<(bool, bool)> {
        let alone = Alone::default();
        let mut company = Company::new(alone.clone());
        assert!(!alone.is_sure());
        let mut told = Vec::new();
        for is_ours in found {
            told.push((company.note(*is_ours, Instant::now()), alone.is_sure()));
            advance(Duration::from_secs(5)).await;
        }
        advance(QUIET).await;
        assert!(!alone.is_sure(), "heartbeats have stopped");
        told
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_a_record_of_others_is_alone() {
        assert_eq!(told(&[true; 9]).await, [(false, true); 9]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_record_of_a_process_that_has_died_is_waited_for_and_not_complained_of() {
        let told = told(&[false, true, true, true, true]).await;
        assert_eq!(told, [(false, false), (false, false), (false, false), (false, true), (false, true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_process_is_told_of_now_and_then_until_it_is_gone() {
        let there = [[true].as_slice(), &[false; 20]].concat();
        let heard = told(&there).await;
        assert!(heard[0].1 && heard[1..].iter().all(|(_, is_alone)| !is_alone));
        let said: Vec<usize> =
            (0..).zip(&heard).filter(|(_, (says, _))| *says).map(|(beat, _)| beat).collect();
        assert_eq!(said, [2, 14]);
        let gone = told(&[there, vec![true; 3]].concat()).await;
        assert_eq!(gone.last(), Some(&(false, true)));
    }
}
