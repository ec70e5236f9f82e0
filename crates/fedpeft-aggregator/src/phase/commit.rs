//! Commit: makes the next global adapter durable. The moment of truth is the compare-and-set of the record:
//! before it, a new owner folds the round again from its updates; after it, the updates are forgotten.
//!
//! | then | because |
//! | --- | --- |
//! | evaluate | the round is committed; of buffered rounds, with the clients that go on training |
//! | failed | the new adapter cannot be stored |

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use fedpeft_bus::Stale;
use fedpeft_protocol::Digest;
use fedpeft_strategy::{AccumulateError, buffered};

use super::{Phase, evaluate::Committed};
use crate::{
    drive::Drive,
    retention,
    round::{RoundState, report_key},
    stop::Stop,
};

pub(crate) async fn run(drive: &mut Drive<'_>, mut round: Box<RoundState>) -> Result<Phase, Stop> {
    let started = Instant::now();
    let is_synchronous = drive.record.spec.mode.is_synchronous();
    let next = if is_synchronous { mean(drive, &round).await? } else { moved(drive, &round).await? };
    let digest = drive.bus.put_blob(next.clone()).await?.digest;
    round.seconds.aggregate = (round.folding + started.elapsed()).as_secs_f64();
    round.seconds.total = round.started.elapsed().as_secs_f64();
    let carried = round.carried(&drive.record.spec);
    let mut report = round.report(drive.record, &carried, digest);
    // What comes after these marks is no longer the business of this round.
    let (tasks, updates) = (drive.bus.task_mark().await?, drive.bus.update_mark().await?);
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
            record.carried = carried;
        })
        .await?;
    drive.adapter = next;
    // The updates are in a durable adapter now: this is their acknowledgement.
    if is_synchronous {
        drive.bus.purge_updates(&drive.record.run, Stale::Round(report.round), updates).await?;
        if !round.outstanding().is_empty() {
            drive.bus.purge_tasks(&drive.record.run, tasks).await?;
        }
    } else {
        for (client, member) in round.members.iter().filter(|(client, _)| round.answers.contains_key(client))
        {
            drive.bus.purge_updates(&drive.record.run, Stale::Client(member.round, client), updates).await?;
        }
    }
    retention::forget_update_blobs(drive, &round).await;
    // Written with the report once it is evaluated.
    report.seconds.aggregate = (round.folding + started.elapsed()).as_secs_f64();
    report.seconds.total = round.started.elapsed().as_secs_f64();
    tracing::info!(
        run = %drive.record.run,
        round = report.round,
        accepted = round.accepted().count(),
        clients = round.members.len(),
        train_loss = report.train_loss,
        "round committed"
    );
    Ok(Phase::Evaluate(Box::new(Committed { report, revision })))
}

/// The next global adapter of a synchronous round, as the run's strategy says.
async fn mean(drive: &Drive<'_>, round: &RoundState) -> Result<Bytes, Stop> {
    let (strategy, present) = (drive.strategy.clone(), drive.adapter.clone());
    round.with_sum(move |sum| strategy.next(&present, sum)).await?.map_err(failed)
}

/// The next global adapter of a buffered round. Its updates may have begun with different adapters, which are taken
/// out of the sum one by one.
async fn moved(drive: &Drive<'_>, round: &RoundState) -> Result<Bytes, Stop> {
    let mut bases = BTreeMap::<Digest, u64>::new();
    for (client, accepted) in round.accepted_by() {
        if let Some(member) = round.members.get(client) {
            *bases.entry(member.adapter).or_default() += accepted.weight;
        }
    }
    for (base, weight) in bases {
        let base = drive.global(&base).await?;
        round.with_sum(move |sum| sum.subtract(&base, weight)).await?.map_err(failed)?;
    }
    let examples = round.accepted().map(|accepted| accepted.examples).sum();
    let present = drive.adapter.clone();
    round.with_sum(move |sum| buffered::next(&present, sum, examples)).await?.map_err(failed)
}

fn failed(error: AccumulateError) -> Stop {
    Stop::Failed(error.to_string())
}
