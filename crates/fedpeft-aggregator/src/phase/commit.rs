//! Commit: makes the next global adapter durable. The moment of truth is the compare-and-set of the record:
//! before it, a new owner folds the round again from its updates; after it, the updates are forgotten.
//!
//! | then | because |
//! | --- | --- |
//! | evaluate | the round is committed; of buffered rounds, with the clients that go on training |
//! | failed | the new adapter cannot be stored |

use std::{collections::BTreeMap, io::Write, time::Instant};

use fedpeft_bus::{Mark, Stale};
use fedpeft_protocol::{Digest, RunId, run::PrivacyState};
use fedpeft_strategy::{Closing, Kept, Spool as Readable, SpoolError, lora::Residual, scaffold};
use tokio::sync::OnceCell;

use super::{Phase, evaluate::Committed};
use crate::{
    drive::Drive,
    encoding, privacy, retention,
    round::{RoundState, Updates, report_key},
    spool::{Adapter, Target},
    stop::Stop,
    traced,
};

pub(crate) async fn run(drive: &mut Drive<'_>, mut round: Box<RoundState>) -> Result<Phase, Stop> {
    let started = Instant::now();
    let is_synchronous = drive.record.spec.mode.is_synchronous();
    let Next { adapter: next, moments, unclipped } = next(drive, &round).await?;
    let control = next_control(drive, &round).await?;
    privacy::announce(drive, &round).await?;
    let (wire, spec) = ((drive.bus, drive.spool), &drive.record.spec);
    let (next, sent) = encoding::sent(wire, &drive.model, spec, round.open.round, next).await?;
    let residual = next_residual(drive, &round, &next).await?;
    let digest = drive.store(&next).await?;
    let moments = stored(drive, moments.as_ref()).await?;
    let control_digest = stored(drive, control.as_ref()).await?;
    let residual_digest = stored(drive, residual.as_ref()).await?;
    let forgotten = drive.record.moments.filter(|before| Some(*before) != moments);
    round.seconds.aggregate = (round.folding + started.elapsed()).as_secs_f64();
    round.seconds.total = round.started.elapsed().as_secs_f64();
    let carried = round.carried(&drive.record.spec);
    let mut report = round.report(drive.record, &carried, (digest, residual_digest));
    report.privacy = drive.record.privacy.map(|spent| PrivacyState { release: None, ..spent });
    let privacy = match report.privacy {
        Some(spent) => {
            Some(PrivacyState { clip_norm: privacy::next_clip_norm(drive, &round, unclipped)?, ..spent })
        }
        None => None,
    };
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
            record.sent = sent;
            record.moments = moments;
            record.control = control_digest;
            record.residual = residual_digest;
            record.privacy = privacy;
            record.ledger = report.ledger;
            record.open = None;
            record.carried = carried;
        })
        .await?;
    (drive.adapter, drive.encoded) = (OnceCell::new_with(Some(next)), OnceCell::new());
    (drive.control, drive.residual) = (OnceCell::new_with(control), OnceCell::new_with(residual));
    if drive.record.spec.has_memory() {
        report.clients.iter().for_each(|client| drive.counted.add(&client));
    }
    if let Some(before) = &forgotten {
        forget_moments(drive, before).await;
    }
    // The updates are in a durable adapter now: this is their acknowledgement.
    if is_synchronous {
        forget(drive, &round, (tasks, updates)).await?;
    } else {
        retention::forget_uploads(drive, &round).await;
        let answered = round.clients.iter().filter(|(.., answer)| answer.is_some());
        let answered = answered.map(|(client, member, _)| (member.round, client)).collect();
        drive.forget_all(answered, updates, Some(tasks)).await?;
    }
    // Written with the report once it is evaluated.
    report.seconds.aggregate = (round.folding + started.elapsed()).as_secs_f64();
    report.seconds.total = round.started.elapsed().as_secs_f64();
    tracing::info!(
        run = %drive.record.run,
        round = report.round,
        accepted = round.clients.accepted().count(),
        clients = round.clients.len(),
        train_loss = report.train_loss,
        "round committed"
    );
    Ok(Phase::Evaluate(Box::new(Committed { report, revision, began: traced::began(&round.open) })))
}

/// Forgets what was sent in a synchronous round before these marks, uploads first, while the updates still name them.
pub(crate) async fn forget(
    drive: &Drive<'_>,
    round: &RoundState,
    (tasks, updates): (Mark, Mark),
) -> Result<(), Stop> {
    retention::forget_uploads(drive, round).await;
    // Tasks first: a client that comes back and finds one still finds its answer.
    drive.bus.purge_tasks(&drive.record.run, tasks).await?;
    drive.bus.purge_updates(&drive.record.run, Stale::Round(round.open.round), updates).await?;
    Ok(())
}

/// What a round leaves.
struct Next {
    adapter: Adapter,
    /// What the strategy keeps for the next round.
    moments: Option<Adapter>,
    /// Updates that were not clipped.
    unclipped: u64,
}

/// The next global adapter: the strategy's step towards what the updates come to.
async fn next(drive: &Drive<'_>, round: &RoundState) -> Result<Next, Stop> {
    subtract_bases(drive, round).await?;
    let strategy = drive.strategy.clone();
    let present = match strategy.reads_global() || round.rule().reads_global() {
        true => drive.global(&drive.record.adapter).await?,
        false => Adapter::none(),
    };
    let before = match &drive.record.moments {
        Some(moments) => Some(drive.stored(moments, moments_size(drive)).await?),
        None => None,
    };
    let mut adapter = drive.target(drive.model.layout.bytes())?;
    let mut moments = (strategy.kept() > 0).then(|| drive.target(moments_size(drive))).transpose()?;
    let tag = tag(&drive.record.run);
    let examples: Vec<u64> = round.clients.accepted().map(|accepted| accepted.examples).collect();
    let mut noise = privacy::stream(drive, round, "sum");
    let work = move |Updates { fold, .. }: &mut Updates| -> Result<Next, SpoolError> {
        let unclipped = fold.unclipped();
        let mut before = before.as_ref().map(Adapter::reader);
        let mut nothing = std::io::sink();
        let after: &mut dyn Write = moments.as_mut().map_or(&mut nothing, |target| target);
        let kept = Kept { before: before.as_deref_mut().map(|reader| reader as &mut dyn Readable), after };
        let closing = Closing {
            global: &mut *present.reader(),
            examples: &examples,
            noise: &mut |values| noise.fill(values),
        };
        strategy.next(&mut *present.reader(), kept, &mut fold.close(closing), &mut adapter)?;
        if let Some(lost) = fold.lost() {
            tracing::info!(
                lost,
                "share of the mean low-rank update's squared norm that its rank does not hold"
            );
        }
        if let Some(moments) = &mut moments {
            moments.write_all(&tag)?;
        }
        Ok(Next { adapter: adapter.done(), moments: moments.map(Target::done), unclipped })
    };
    round.with_updates(work).await?.map_err(|error| drive.broken(error))
}

/// The server's next control variate, where the strategy has one.
async fn next_control(drive: &Drive<'_>, round: &RoundState) -> Result<Option<Adapter>, Stop> {
    let (Some(digest), Some(population)) = (drive.record.control, drive.record.spec.scaffold_population())
    else {
        return Ok(None);
    };
    let present = drive.present_control(&digest).await?;
    let mut target = drive.target(drive.model.layout.bytes())?;
    let work = move |updates: &mut Updates| -> Result<Option<Adapter>, SpoolError> {
        let Some(changes) = &updates.control else { return Ok(None) };
        scaffold::control(&mut *present.reader(), changes, population, &mut target)?;
        Ok(Some(target.done()))
    };
    round.with_updates(work).await?.map_err(|error| drive.broken(error))
}

/// What the factors of the next global adapter, as clients get it, do not hold of the mean low-rank updates, where the run
/// keeps that.
async fn next_residual(
    drive: &Drive<'_>,
    round: &RoundState,
    next: &Adapter,
) -> Result<Option<Adapter>, Stop> {
    let Some(layout) = &drive.model.residual else { return Ok(None) };
    let (before, next) = (drive.present_residual().await?, next.clone());
    let mut target = drive.target(layout.bytes())?;
    let work = move |Updates { fold, .. }: &mut Updates| -> Result<Adapter, SpoolError> {
        let mut before = before.as_ref().map(Adapter::reader);
        fold.residual(Residual {
            before: before.as_deref_mut().map(|reader| reader as &mut dyn Readable),
            adapter: &mut *next.reader(),
            out: &mut target,
        })?;
        Ok(target.done())
    };
    round.with_updates(work).await?.map(Some).map_err(|error| drive.broken(error))
}

/// Stores what there is.
async fn stored(drive: &Drive<'_>, kept: Option<&Adapter>) -> Result<Option<Digest>, Stop> {
    match kept {
        Some(kept) => Ok(Some(drive.store(kept).await?)),
        None => Ok(None),
    }
}

/// Takes the adapters that updates began with out of their sum, one by one, where it is a sum of differences.
async fn subtract_bases(drive: &Drive<'_>, round: &RoundState) -> Result<(), Stop> {
    if !round.rule().subtracts_bases() {
        return Ok(());
    }
    let mut bases = BTreeMap::<Digest, u64>::new();
    for (_, member, accepted) in round.clients.accepted_by() {
        *bases.entry(member.adapter).or_default() += accepted.weight;
    }
    for (base, weight) in bases {
        let base = drive.global(&base).await?;
        let subtracted = move |Updates { fold, .. }: &mut Updates| fold.subtract(&mut *base.reader(), weight);
        round.with_updates(subtracted).await?.map_err(|error| drive.broken(error))?;
    }
    Ok(())
}

/// Bytes of what a strategy keeps, and of its tag.
fn moments_size(drive: &Drive<'_>) -> u64 {
    drive.model.layout.bytes() * drive.strategy.kept() as u64 + TAG
}

/// Bytes of a tag.
pub(crate) const TAG: u64 = 32;

/// What makes the moments of a run those of no other: blobs are named by content, and runs with equal seeds have equal
/// moments, but each forgets its own.
pub(crate) fn tag(run: &RunId) -> [u8; TAG as usize] {
    *Digest::of(format!("moments of {run}")).as_bytes()
}

/// Forgets the moments of the round before. What cannot be forgotten costs space and nothing else.
async fn forget_moments(drive: &Drive<'_>, moments: &Digest) {
    if let Err(error) = drive.bus.delete_blob(moments).await {
        tracing::warn!(run = %drive.record.run, %error, "moments of the round before not deleted");
    }
}
