//! Runs as the broker stores them. They are read from their buckets and not from the control API: a run of
//! any length can be read, and one can look at runs while no aggregator is there.

use anyhow::{Result, bail};
use fedpeft_bus::Bus;
use fedpeft_protocol::{
    RunId,
    run::{RunRecord, RunView},
};

/// A run and its committed rounds, in order.
pub async fn view(bus: &Bus, run: &RunId) -> Result<RunView> {
    let record = record(bus, run).await?;
    let reports = bus.round_reports().await?.list(run.as_str()).await?;
    let mut rounds: Vec<_> = reports.into_iter().map(|entry| entry.value).collect();
    rounds.sort_by_key(|report| report.round);
    // A report is stored before its round is committed: the one of an uncommitted round may still change.
    rounds.retain(|report| report.round <= record.round);
    Ok(RunView { record, rounds })
}

/// The state of a run.
pub async fn record(bus: &Bus, run: &RunId) -> Result<RunRecord> {
    match bus.runs().await?.get(run.as_str()).await? {
        Some((record, _)) => Ok(record),
        None => bail!("there is no run {run}: `fedpeft run list` shows all runs"),
    }
}

/// All runs, newest first.
pub async fn all(bus: &Bus) -> Result<Vec<RunRecord>> {
    let entries = bus.runs().await?.list_top().await?;
    let mut runs: Vec<_> = entries.into_iter().map(|entry| entry.value).collect();
    runs.sort_by(|a, b| b.created_ms.cmp(&a.created_ms).then_with(|| a.run.cmp(&b.run)));
    Ok(runs)
}
