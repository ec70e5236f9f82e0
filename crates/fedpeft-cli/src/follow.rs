//! Following a run to its end.

use std::time::Duration;

use anyhow::Result;
use fedpeft_bus::Bus;
use fedpeft_protocol::{
    RunId,
    event::{Event, EventKind},
    round::RoundReport,
    run::{RunRecord, RunView},
};

use crate::records;

/// Whoever is told of a run.
pub trait Watcher {
    /// Something happened. The same may be told again.
    fn event(&mut self, event: &Event);
    /// The durable state was looked at.
    fn record(&mut self, _record: &RunRecord) {}
    /// A round is committed; told at the end, of all rounds, for events may be lost.
    fn report(&mut self, report: &RoundReport);
    /// The run is final, and nothing more will be told.
    fn end(&mut self, _record: &RunRecord) {}
}

/// How often the durable state is looked at: events may be lost with an aggregator that dies, state is not.
const LOOK: Duration = Duration::from_secs(2);

/// Looks that may fail one after another before the broker is given up.
const MAX_FAILURES: u32 = 10;

/// Tells of a run from its first round until it is final, and returns what became of it.
pub async fn to_the_end(bus: &Bus, run: &RunId, watcher: &mut impl Watcher) -> Result<RunView> {
    let mut events = bus.events(Some(run), true).await?;
    let mut look = tokio::time::interval(LOOK);
    let (mut final_before, mut caught_up, mut failures) = (false, false, 0);
    loop {
        let look_now = tokio::select! {
            event = events.next() => {
                let event = event?;
                watcher.event(&event);
                caught_up = events.pending() == 0;
                matches!(event.kind, EventKind::Status { status, .. } if status.is_final()) && caught_up
            }
            _ = look.tick() => true,
        };
        if !look_now {
            continue;
        }
        let is_final = match records::record(bus, run).await {
            Ok(record) => {
                failures = 0;
                watcher.record(&record);
                record.status.is_final()
            }
            // A broker that is started again is away for a while.
            Err(_) if failures < MAX_FAILURES => {
                failures += 1;
                false
            }
            Err(error) => return Err(error),
        };
        if is_final {
            // The last events may still be on their way; one more look's time is enough for them.
            if caught_up || final_before {
                break;
            }
            final_before = true;
        }
    }
    let finished = records::view(bus, run).await?;
    finished.rounds.iter().for_each(|report| watcher.report(report));
    watcher.end(&finished.record);
    Ok(finished)
}
