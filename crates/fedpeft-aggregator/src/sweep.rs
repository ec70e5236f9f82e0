//! Updates that nobody will read. A client may store updates under the name of any run, so what is stored for runs
//! that have ended or never were is forgotten now and then: it would fill the broker's disk.

use std::{collections::BTreeSet, time::Duration};

use fedpeft_bus::{Bus, BusError, Stale};
use fedpeft_protocol::RunId;
use tokio::time::sleep;

/// How often.
const PERIOD: Duration = Duration::from_secs(5 * 60);
/// Most runs at once, so that memory is bounded whatever was stored. The rest is for the next time.
const MOST: usize = 10_000;

/// Sweeps for ever.
pub(crate) async fn keep(bus: &Bus) {
    loop {
        if let Err(error) = sweep(bus).await {
            tracing::debug!(%error, "updates of ended runs not forgotten, trying again later");
        }
        sleep(PERIOD).await;
    }
}

async fn sweep(bus: &Bus) -> Result<(), BusError> {
    // Before the list of runs: what is stored for a run that begins after it stays.
    let mark = bus.update_mark().await?;
    let stored = bus.runs_with_updates(MOST).await?;
    if stored.is_empty() {
        return Ok(());
    }
    let records = bus.runs().await?;
    let listed = records.list_top().await?;
    let active: BTreeSet<RunId> = listed
        .into_iter()
        .map(|entry| entry.value)
        .filter(|record| !record.status.is_final())
        .map(|record| record.run)
        .collect();
    for run in stored.difference(&active) {
        // A record that cannot be read is in no list, and its run is not known to have ended.
        if records.get(run.as_str()).await?.is_some_and(|(record, _)| !record.status.is_final()) {
            continue;
        }
        bus.purge_updates(run, Stale::Run, mark).await?;
        tracing::info!(%run, "forgot updates of a run that is not active");
    }
    Ok(())
}
