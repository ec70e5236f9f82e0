//! One task from upstream, from its delivery to its answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fedpeft_bus::TaskDelivery;
use fedpeft_protocol::{
    RunId,
    round::{Task, Work},
    run::{RunStatus, UpstreamState},
};
use fedpeft_service::CancellationToken;
use fedpeft_trace::{Instrument, span};
use tokio::time::sleep;

use super::{
    Edge,
    begin::{self, Taken},
    close, send,
};
use crate::{
    drive::Drive,
    events::EventLog,
    lease::{self, Held, STANDBY},
    model,
    phase::{Phase, broadcast, collect},
    record::OwnedRecord,
    stop::Stop,
    takeover, traced,
};

/// How often it is looked whether the run was cancelled here.
const CANCELLED_CHECK: Duration = Duration::from_secs(2);

/// Answers a task; leaves it to the next process at `stop`.
pub(super) async fn run(edge: Arc<Edge>, delivery: TaskDelivery, deadline: Instant, stop: CancellationToken) {
    let Ok(task) = &delivery.result else { return };
    let (run, round) = (&task.run, task.round);
    let span = span!(
        "task", otel.kind = "consumer", fedpeft.run = %run, fedpeft.round = round,
        fedpeft.client = %edge.client, fedpeft.work = task.work.name()
    );
    delivery.origin.adopt(&span);
    // Nobody waits for it any more.
    if let Err(error) = Box::pin(answer(&edge, task, deadline, &stop).instrument(span)).await {
        tracing::warn!(%run, round, %error, "task given up");
    }
}

/// Answers a task, through trouble that passes. While another process has the run, it waits for its turn or the answer.
async fn answer(edge: &Edge, task: &Task, deadline: Instant, stop: &CancellationToken) -> Result<(), Stop> {
    loop {
        let is_late = Instant::now() >= deadline;
        let pause = match Box::pin(attempt(edge, task, deadline, stop)).await {
            Ok(Held::Done(())) => return Ok(()),
            Ok(Held::Left | Held::Elsewhere) if is_late => return Ok(()),
            Ok(Held::Left | Held::Elsewhere) => STANDBY,
            Err(error @ Stop::Failed(_)) => return Err(error),
            Err(error) if is_late => return Err(error),
            Err(error) => {
                tracing::warn!(run = %task.run, round = task.round, %error, "round interrupted, going on from its durable state");
                error.pause()
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(pause) => {}
        }
    }
}

async fn attempt(
    edge: &Edge,
    task: &Task,
    deadline: Instant,
    stop: &CancellationToken,
) -> Result<Held<()>, Stop> {
    let Work::Aggregate { spec, examples } = &task.work else {
        let reason =
            format!("client {} is an edge: it aggregates, and does not {}", edge.client, task.work.name());
        return until(stop, send::refusal(edge, task, reason)).await;
    };
    // Nobody needs the lease to see that.
    if let Some(settled) = begin::settled(edge, task).await? {
        return until(stop, work(edge, task, settled, *examples, deadline)).await;
    }
    let taken = async {
        let taken = begin::take(edge, task, spec).await?;
        work(edge, task, taken, *examples, deadline).await
    };
    Ok(match lease::hold(&edge.shop.bus, &task.run, &edge.owner, stop, Box::pin(taken)).await? {
        Held::Done(done) => Held::Done(done?),
        Held::Left => Held::Left,
        Held::Elsewhere => Held::Elsewhere,
    })
}

/// Does what needs no lease, unless `stop` comes.
async fn until(
    stop: &CancellationToken,
    work: impl Future<Output = Result<(), Stop>>,
) -> Result<Held<()>, Stop> {
    let done = stop.run_until_cancelled(Box::pin(work)).await.transpose()?;
    Ok(done.map_or(Held::Left, Held::Done))
}

/// Does what is left to do for a task.
async fn work(edge: &Edge, task: &Task, taken: Taken, examples: u64, deadline: Instant) -> Result<(), Stop> {
    let mut record = match taken {
        Taken::Record(record) => *record,
        Taken::Over => {
            tracing::debug!(run = %task.run, round = task.round, "task is over");
            return Ok(());
        }
        Taken::Closed(reason) => return send::refusal(edge, task, reason).await,
    };
    if begin::state(&record) == Some(&UpstreamState::Begun) {
        if record.open.is_none() && Instant::now() >= deadline {
            tracing::info!(run = %task.run, round = task.round, "skipping a task past its deadline");
            return Ok(());
        }
        let gathered = tokio::select! {
            gathered = Box::pin(gather(edge, &mut record, task, examples, deadline)) => gathered,
            () = cancelled(edge, &task.run) => Err(Stop::Fenced),
        };
        match gathered {
            Err(Stop::Failed(reason)) => close::give_up(edge, &mut record, task, reason).await?,
            gathered => gathered?,
        }
    }
    send::answer(edge, &mut record, task).await
}

/// Has the clients train and adds up what they send.
async fn gather(
    edge: &Edge,
    record: &mut OwnedRecord,
    task: &Task,
    examples: u64,
    deadline: Instant,
) -> Result<(), Stop> {
    let fetched = begin::mirror(edge, task).await?;
    let events = EventLog::start(&edge.shop.bus, &record.run, record.epoch);
    let mut drive = Box::pin(Drive::start(&edge.shop, record, &events)).await?;
    takeover::forget_counted(&drive).await?;
    if drive.record.round == 0 && drive.record.open.is_none() {
        events.emit(model::status_event(drive.record, Some(&drive.model)));
    }
    let round = begin::round(&mut drive, edge, examples, deadline).await?;
    let span = |drive: &Drive<'_>, name| traced::part(drive.record, task.round, name);
    let broadcast = span(&drive, "broadcast");
    let sent = broadcast::run(&mut drive, round).instrument(broadcast).await?;
    let Phase::Collect(round) = sent else { return Ok(()) };
    let collect = span(&drive, "collect");
    let collected = collect::run(&mut drive, round).instrument(collect).await?;
    let Phase::Commit(round) = collected else { return Ok(()) };
    let commit = span(&drive, "commit");
    close::run(&mut drive, task, round, fetched).instrument(commit).await?;
    events.finish().await;
    Ok(())
}

/// Returns once somebody has cancelled the run here.
async fn cancelled(edge: &Edge, run: &RunId) {
    loop {
        sleep(CANCELLED_CHECK).await;
        let record = async { edge.shop.bus.runs().await?.get(run.as_str()).await };
        if let Ok(Some((record, _))) = record.await
            && record.status == RunStatus::Cancelled
        {
            return;
        }
    }
}
