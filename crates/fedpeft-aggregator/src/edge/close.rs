//! The end of an edge's round: the sum is made durable, and with it the decision what the answer to upstream is.

use std::{
    io::{self, Seek, SeekFrom, Write},
    time::Instant,
};

use fedpeft_bus::Stale;
use fedpeft_protocol::{
    Digest, PROTOCOL_VERSION,
    round::{Outcome, Payload, Task, Transfer, Update},
    run::{RunRecord, RunStatus, UpstreamState},
};
use fedpeft_strategy::{Claim, SpoolError};

use super::Edge;
use crate::{
    drive::Drive,
    model,
    phase::commit,
    record::OwnedRecord,
    report::Report,
    round::{RoundState, Updates, report_key},
    spool::{Adapter, Target},
    stop::Stop,
};

/// A sum as it is kept until it is sent.
struct Kept {
    claim: Claim,
    digest: Digest,
    size: u64,
    /// The sum and a tag of its run, so that runs with equal sums do not share a blob that one of them forgets.
    blob: Adapter,
}

/// Closes the round: from its compare-and-set of the record on, the answer is what it is.
pub(super) async fn run(
    drive: &mut Drive<'_>,
    task: &Task,
    mut round: Box<RoundState>,
    fetched: Vec<Transfer>,
) -> Result<(), Stop> {
    let started = Instant::now();
    let Kept { claim, digest, size, blob } = sum(drive, &round).await?;
    let kept = drive.store(&blob).await?;
    round.seconds.aggregate = (round.folding + started.elapsed()).as_secs_f64();
    round.seconds.total = round.started.elapsed().as_secs_f64();
    let report = round.report(drive.record, &[], (digest, None));
    let update = answer(
        task,
        fetched,
        Outcome::Aggregated {
            updates: claim.updates(),
            examples: claim.weight(),
            loss: report.train_loss,
            seconds: report.seconds.train,
            sum: Payload::Blob { digest, size },
        },
    );
    let marks = (drive.bus.task_mark().await?, drive.bus.update_mark().await?);
    // The report goes first, so that a committed round always has one.
    let key = report_key(&drive.record.run, report.round);
    match round.report {
        None => drive.reports.create(&key, &report).await?,
        Some(revision) => drive.reports.update(&key, &report, revision).await?,
    };
    drive.record.write(|record| closed(record, &report, update, kept)).await?;
    commit::forget(drive, &round, marks).await?;
    tracing::info!(
        run = %drive.record.run,
        round = report.round,
        accepted = round.clients.accepted().count(),
        clients = round.clients.len(),
        bytes = size,
        train_loss = report.train_loss,
        "round summed up"
    );
    drive.events.close(report);
    if drive.record.status.is_final() {
        drive.events.emit(model::status_event(drive.record, Some(&drive.model)));
    }
    Ok(())
}

fn closed(record: &mut RunRecord, report: &Report, update: Update, kept: Digest) {
    record.round = report.round;
    record.ledger = report.ledger;
    record.open = None;
    if report.round >= record.spec.rounds {
        record.status = RunStatus::Completed;
    }
    if let Some(upstream) = &mut record.upstream {
        upstream.state = UpstreamState::Answered { update: Box::new(update), kept: Some(kept) };
    }
}

/// Gives the round up: the answer is that there is no sum.
pub(super) async fn give_up(
    edge: &Edge,
    record: &mut OwnedRecord,
    task: &Task,
    reason: String,
) -> Result<(), Stop> {
    let (bus, run) = (&edge.shop.bus, &task.run);
    tracing::warn!(%run, round = task.round, reason, "round failed");
    let (tasks, updates) = (bus.task_mark().await?, bus.update_mark().await?);
    let given_up = record.given_up();
    let update = Box::new(answer(task, Vec::new(), Outcome::Failed { reason }));
    record
        .write(|record| {
            record.open = None;
            if let Some(upstream) = &mut record.upstream {
                upstream.state = UpstreamState::Answered { update, kept: None };
            }
        })
        .await?;
    bus.purge_tasks(run, tasks).await?;
    for round in given_up {
        bus.purge_updates(run, Stale::Round(round), updates).await?;
    }
    Ok(())
}

/// An answer to the task.
pub(super) fn answer(task: &Task, fetched: Vec<Transfer>, outcome: Outcome) -> Update {
    let (epoch, task) = (task.epoch, task.task.clone());
    Update { version: PROTOCOL_VERSION, epoch, task, outcome, fetched }
}

/// Encodes the sum of the round's updates.
async fn sum(drive: &Drive<'_>, round: &RoundState) -> Result<Kept, Stop> {
    // How long it is turns out when it is written.
    let target = match drive.fits_a_message() {
        true => Target::Memory(Vec::new()),
        false => Target::File(drive.spool.growing().map_err(|source| drive.spool.unusable(source))?),
    };
    let tag = commit::tag(&drive.record.run);
    let work = move |Updates { fold, .. }: &mut Updates| -> Result<Kept, SpoolError> {
        let mut target = target;
        let claim = fold.partial(&mut target)?;
        let sum = target.done();
        let mut reader = sum.reader();
        let size = reader.seek(SeekFrom::End(0))?;
        reader.rewind()?;
        let digest = Digest::of_reader(reader)?;
        Ok(Kept { claim, digest, size, blob: tagged(sum, &tag)? })
    };
    round.with_updates(work).await?.map_err(|error| drive.broken(error))
}

fn tagged(sum: Adapter, tag: &[u8]) -> io::Result<Adapter> {
    match &sum {
        Adapter::Held(bytes) => Ok(Adapter::Held([bytes, tag].concat().into())),
        Adapter::Spooled(file) => {
            let mut file = &**file;
            file.seek(SeekFrom::End(0))?;
            file.write_all(tag)?;
            file.flush()?;
            Ok(sum)
        }
    }
}
