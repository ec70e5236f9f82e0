//! Commit: makes the next global adapter durable. The moment of truth is the compare-and-set of the record:
//! before it, a new owner folds the round again from its updates; after it, the updates are forgotten.
//!
//! | then | because |
//! | --- | --- |
//! | evaluate | the round is committed |
//! | failed | the new adapter cannot be stored |

use std::time::Instant;

use super::{Phase, evaluate::Committed};
use crate::{
    drive::Drive,
    retention,
    round::{RoundState, report_key},
    stop::Stop,
};

pub(crate) async fn run(drive: &mut Drive<'_>, mut round: Box<RoundState>) -> Result<Phase, Stop> {
    let started = Instant::now();
    let (strategy, present) = (drive.strategy.clone(), drive.adapter.clone());
    let next = round.with_sum(move |sum| strategy.next(&present, sum)).await?;
    let next = next.map_err(|error| Stop::Failed(error.to_string()))?;
    let digest = drive.bus.put_blob(next.clone()).await?.digest;
    round.seconds.aggregate = (round.folding + started.elapsed()).as_secs_f64();
    round.seconds.total = round.started.elapsed().as_secs_f64();
    let mut report = round.report(drive.record, digest);
    // The report goes first, so that a committed round always has one. Its revision was read when the round
    // was opened: a former owner that wakes up here cannot replace what its successor wrote.
    let key = report_key(&drive.record.run, report.round);
    let revision = match round.report {
        None => drive.reports.create(&key, &report).await?,
        Some(revision) => drive.reports.update(&key, &report, revision).await?,
    };
    drive
        .record
        .write(|record| {
            record.round = report.round;
            record.adapter = digest;
            record.ledger = report.ledger;
            record.open = None;
        })
        .await?;
    drive.adapter = next;
    // The updates are in a durable adapter now: this is their acknowledgement.
    drive.bus.purge_updates(&drive.record.run, report.round).await?;
    if !round.outstanding().is_empty() {
        drive.bus.purge_tasks(&drive.record.run).await?;
    }
    retention::forget_update_blobs(drive, &round).await;
    // Written with the report once it is evaluated.
    report.seconds.aggregate = (round.folding + started.elapsed()).as_secs_f64();
    report.seconds.total = round.started.elapsed().as_secs_f64();
    tracing::info!(
        run = %drive.record.run,
        round = report.round,
        accepted = round.accepted().count(),
        cohort = round.open.cohort.len(),
        train_loss = report.train_loss,
        "round committed"
    );
    Ok(Phase::Evaluate(Box::new(Committed { report, revision })))
}
