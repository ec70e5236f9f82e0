//! Evaluate: has a client measure the new global adapter, where that is due, and announces the round.
//!
//! | then | because |
//! | --- | --- |
//! | select | the round is announced, with or without an evaluation |
//!
//! A run does not fail for want of an evaluation: without an evaluator, after its failure or its deadline, the
//! report has no loss and no accuracy. When an evaluator goes away, the next one is asked.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};

use fedpeft_bus::{Ledger, Revision, UpdateDelivery};
use fedpeft_protocol::{
    ClientId,
    presence::Presence,
    round::{ByteKind, Direction, Outcome, Task, Transfer, Work},
};
use fedpeft_service::now_ms;
use tokio::time::{self, interval_at, sleep};

use super::{Phase, collect::TASK_CHECK};
use crate::{admit::one_line, drive::Drive, report::Report, round::report_key, stop::Stop, traced};

/// How often the evaluator's presence is looked up.
const PRESENCE_CHECK: Duration = Duration::from_secs(3);

/// A round that is committed but not announced.
pub(crate) struct Committed {
    pub report: Report,
    /// Revision of the stored report.
    pub revision: Revision,
    /// When the round began.
    pub began: SystemTime,
}

/// What came of asking one evaluator.
enum Answer {
    Measured { loss: f64, accuracy: Option<f64> },
    Useless,
    Gone,
    TimedOut,
}

pub(crate) async fn run(drive: &mut Drive<'_>, mut committed: Box<Committed>) -> Result<Phase, Stop> {
    let (round, started) = (committed.report.round, Instant::now());
    let spec = &drive.record.spec;
    if committed.report.loss.is_none() && spec.is_personal() && spec.evaluates(round) {
        tracing::warn!(
            run = %drive.record.run, round,
            "no client evaluates its own model: set client_holdout in the description of their data"
        );
    }
    if committed.report.loss.is_none() && is_due(drive, round) {
        let mut ledger = Ledger::default();
        if let Some((loss, accuracy)) = evaluation(drive, round, &mut ledger).await? {
            committed.report.loss = Some(loss);
            committed.report.accuracy = accuracy;
        }
        committed.report.bytes_by_kind.extend(ledger.total.by_kind());
        committed.report.payload_by_kind.extend(ledger.payload.by_kind());
    }
    let seconds = &mut committed.report.seconds;
    seconds.evaluate = started.elapsed().as_secs_f64();
    seconds.total += seconds.evaluate;
    let Committed { report, revision, began } = *committed;
    drive.reports.update(&report_key(&drive.record.run, round), &report, revision).await?;
    tracing::info!(
        run = %drive.record.run,
        round,
        loss = report.loss,
        accuracy = report.accuracy,
        seconds = report.seconds.total,
        "round closed"
    );
    traced::close(drive.record, began, &report);
    drive.events.close(report);
    Ok(Phase::Select)
}

/// Where clients evaluate their own models, nobody has the global one as it would be used.
fn is_due(drive: &Drive<'_>, round: u32) -> bool {
    let spec = &drive.record.spec;
    spec.evaluates(round) && !spec.is_personal()
}

/// Asks evaluators one after another until one answers or none is left.
async fn evaluation(
    drive: &mut Drive<'_>,
    round: u32,
    ledger: &mut Ledger,
) -> Result<Option<(f64, Option<f64>)>, Stop> {
    let patience = Duration::try_from_secs_f64(drive.record.spec.evaluation.deadline_seconds)
        .map_err(|error| Stop::Failed(format!("evaluation.deadline_seconds: {error}")))?;
    let deadline_ms = now_ms().saturating_add(patience.as_millis() as u64);
    drive.evaluations.clear();
    let mut asked = BTreeSet::new();
    loop {
        let evaluator = |presence: Presence| presence.capabilities.evaluates.then_some(());
        let evaluators = drive.present(evaluator).await?;
        let Some(evaluator) = evaluators.into_keys().find(|client| !asked.contains(client)) else {
            tracing::warn!(run = %drive.record.run, round, "no client evaluates the global adapter");
            return Ok(None);
        };
        match ask(drive, round, &evaluator, deadline_ms, ledger).await? {
            Answer::Measured { loss, accuracy } => return Ok(Some((loss, accuracy))),
            Answer::TimedOut => {
                tracing::warn!(run = %drive.record.run, round, client = %evaluator, "evaluation came to its deadline");
                return Ok(None);
            }
            Answer::Useless | Answer::Gone => asked.insert(evaluator),
        };
    }
}

async fn ask(
    drive: &mut Drive<'_>,
    round: u32,
    evaluator: &ClientId,
    deadline_ms: u64,
    ledger: &mut Ledger,
) -> Result<Answer, Stop> {
    let task = drive.task((round, drive.record.epoch), 1, evaluator, Work::Evaluate, deadline_ms).await?;
    drive.evaluations.insert(task.task.clone());
    // Only its answer is read: what others send meanwhile waits for the next round.
    let mut answers = drive.bus.updates_of(&drive.record.run, round, evaluator).await?;
    let measured = drive.bus.publish_task(&task, evaluator).await?;
    ledger.count(measured.transfer(Direction::Down, ByteKind::Evaluation));
    let deadline = sleep(Duration::from_millis(deadline_ms.saturating_sub(now_ms())));
    tokio::pin!(deadline);
    let mut presence_check = interval_at(time::Instant::now() + PRESENCE_CHECK, PRESENCE_CHECK);
    let mut task_check = interval_at(time::Instant::now() + TASK_CHECK, TASK_CHECK);
    let mut missed = 0;
    loop {
        tokio::select! {
            biased;
            delivery = answers.next() => {
                count(ledger, &delivery);
                if let Some(answer) = judge(drive, &task, evaluator, delivery) {
                    drive.forget_task(round, evaluator).await?;
                    return Ok(answer);
                }
            }
            _ = presence_check.tick() => {
                let is_present = drive.present_clients().await?.contains_key(evaluator);
                missed = if is_present { 0 } else { missed + 1 };
                if missed >= 2 {
                    tracing::warn!(run = %drive.record.run, round, client = %evaluator, "evaluator is gone");
                    return Ok(Answer::Gone);
                }
            }
            _ = task_check.tick() => {
                for (_, _, measured) in drive.restore(vec![(evaluator.clone(), task.clone())]).await? {
                    ledger.count(measured.transfer(Direction::Down, ByteKind::Evaluation));
                }
            }
            () = &mut deadline => return Ok(Answer::TimedOut),
        }
    }
}

/// Counts what an answer took, and what its sender had to fetch for it. A model is no part of the evaluation: it is
/// fetched once, by whichever client is asked first.
fn count(ledger: &mut Ledger, delivery: &UpdateDelivery) {
    ledger.count(delivery.measured.transfer(Direction::Up, ByteKind::Evaluation));
    for transfer in delivery.update.iter().flat_map(|update| &update.fetched) {
        match transfer.kind {
            ByteKind::Backbone | ByteKind::Artifacts => ledger.count(*transfer),
            _ => ledger.count(Transfer { kind: ByteKind::Evaluation, ..*transfer }),
        }
    }
}

/// What the evaluator's update means; nothing if it answers another task.
fn judge(drive: &Drive<'_>, task: &Task, evaluator: &ClientId, delivery: UpdateDelivery) -> Option<Answer> {
    let refuse = |reason: String| {
        drive.refuse(task.round, evaluator, reason);
        Some(Answer::Useless)
    };
    match delivery.update {
        Ok(update) if update.task != task.task => None,
        Err(error) => refuse(error.to_string()),
        Ok(update) => match update.outcome {
            Outcome::Evaluated { loss, accuracy, .. }
                if loss.is_finite() && accuracy.is_none_or(|share| (0.0..=1.0).contains(&share)) =>
            {
                Some(Answer::Measured { loss, accuracy })
            }
            Outcome::Evaluated { loss, accuracy, .. } => {
                refuse(format!("evaluation has loss {loss} and accuracy {}", accuracy.unwrap_or(f64::NAN)))
            }
            Outcome::Failed { reason } => refuse(format!("evaluation failed: {}", one_line(&reason))),
            Outcome::Trained { .. } => refuse("the task was to evaluate, the update is a training".into()),
            Outcome::Secured { .. } => refuse("the task was to evaluate, the update is masked".into()),
            Outcome::Aggregated { .. } => refuse("the task was to evaluate, the update is a sum".into()),
        },
    }
}
