//! Training that is kept from time to time, and goes on from what was kept.

use std::time::{Duration, Instant};

use fedpeft_protocol::{ClientId, Digest, round::Transfer};
use fedpeft_runtime::{Examples, LocalTraining, RuntimeError, Trained, Trainer};

use crate::{
    engine::Next,
    state::{Checkpoint, StateFolder},
};

/// Keeping takes at most this share of the time, however slow the disk is and however large the adapter.
const SHARE: u32 = 20;

/// Where and how often one client's training is kept.
#[derive(Debug, Clone)]
pub(crate) struct Keep {
    pub state: StateFolder,
    pub client: ClientId,
    pub key: Digest,
    /// Seconds between two checkpoints, where [`SHARE`] does not say more.
    pub every: Duration,
    /// Bytes that this process has fetched for the task.
    pub fetched: Vec<Transfer>,
}

impl Keep {
    /// Keeps `checkpoint`.
    pub fn save(&self, checkpoint: &Checkpoint) {
        self.state.save(&self.client, &self.key, checkpoint);
    }

    /// Forgets what is kept.
    pub fn remove(&self) {
        self.state.remove(&self.client);
    }
}

/// Trains from `start`, or from what is kept of the same training. Returns what an earlier process had fetched
/// for it as well.
pub(crate) fn train(
    trainer: &mut Trainer,
    training: LocalTraining<'_>,
    start: &[f32],
    examples: &dyn Examples,
    keep: Option<&Keep>,
    next: &mut dyn FnMut(u64, u64) -> Next,
) -> Result<(Trained, Vec<Transfer>), RuntimeError> {
    let found = keep.and_then(|keep| keep.state.load(&keep.client, &keep.key));
    trainer.set_adapter(start)?;
    let trained = attempt(trainer, training, examples, keep, found.as_ref(), next);
    if let (Err(RuntimeError::Snapshot(reason)), Some(keep)) = (&trained, keep) {
        tracing::warn!(client = %keep.client, reason, "checkpoint cannot be used, training begins anew");
        keep.remove();
        trainer.set_adapter(start)?;
        return Ok((attempt(trainer, training, examples, Some(keep), None, next)?, Vec::new()));
    }
    Ok((trained?, found.map(|found| found.fetched).unwrap_or_default()))
}

fn attempt(
    trainer: &mut Trainer,
    training: LocalTraining<'_>,
    examples: &dyn Examples,
    keep: Option<&Keep>,
    found: Option<&Checkpoint>,
    next: &mut dyn FnMut(u64, u64) -> Next,
) -> Result<Trained, RuntimeError> {
    let mut kept = found.map_or(0, |found| found.snapshot.steps);
    if let (Some(keep), Some(_)) = (keep, found) {
        tracing::info!(client = %keep.client, step = kept, "going on from a checkpoint");
    }
    let mut pace = Pace { last: Instant::now(), cost: Duration::ZERO };
    trainer.train_from(training, found.map(|found| &found.snapshot), examples, &mut |standing| {
        let (steps, planned) = (standing.steps(), standing.planned());
        let next = next(steps, planned);
        if let Some(keep) = keep {
            let wanted = match next {
                Next::Step => pace.is_due(keep.every),
                Next::HandBack => true,
                Next::Stop => false,
            };
            // What is done in full is kept by who sends it.
            if wanted && steps > kept && steps < planned {
                let began = Instant::now();
                let earlier = found.map(|found| found.fetched.as_slice()).unwrap_or_default();
                let fetched = [earlier, &keep.fetched].concat();
                keep.save(&Checkpoint { snapshot: standing.snapshot()?, fetched });
                kept = steps;
                pace = Pace { last: Instant::now(), cost: began.elapsed() };
            }
        }
        Ok(next == Next::Step)
    })
}

/// When the last checkpoint was written, and how long that took.
struct Pace {
    last: Instant,
    cost: Duration,
}

impl Pace {
    fn is_due(&self, every: Duration) -> bool {
        self.last.elapsed() >= every.max(self.cost.saturating_mul(SHARE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_disks_are_written_to_less_often() {
        let pace = |ago, cost| Pace {
            last: Instant::now().checked_sub(Duration::from_secs(ago)).unwrap(),
            cost: Duration::from_secs(cost),
        };
        let every = Duration::from_secs(30);
        assert!(!pace(29, 0).is_due(every) && pace(31, 0).is_due(every));
        assert!(!pace(31, 2).is_due(every) && pace(41, 2).is_due(every));
    }
}
