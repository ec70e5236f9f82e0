//! The local side of an upstream task: its run record, what its clients need, and its round.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use fedpeft_bus::Stale;
use fedpeft_protocol::{
    ClientId, Digest, PROTOCOL_VERSION, ledger,
    round::{Payload, Task, Transfer},
    run::{
        AggregationSpec, EvaluationSpec, ModeSpec, OpenRound, RunRecord, RunSpec, RunStatus, Upstream,
        UpstreamState,
    },
};
use fedpeft_service::now_ms;
use tokio::time::sleep;

use super::{Edge, mirror};
use crate::{
    api::MAX_COHORT,
    drive::Drive,
    phase::select::{self, Trainers},
    record::OwnedRecord,
    round::RoundState,
    stop::Stop,
};

/// What of a task's time its clients have, where nothing else is said: the rest is for adding up and sending.
const SHARE: f64 = 0.9;
/// Expiry of a client announces itself nowhere, so presence is polled.
const POLL: Duration = Duration::from_millis(500);

/// What came of taking a run.
pub(super) enum Taken {
    /// It works for this task.
    Record(Box<OwnedRecord>),
    /// It has answered this task, or begun a newer one.
    Over,
    /// The edge does not take part, for this reason.
    Closed(String),
}

/// How far the record's upstream task has come.
pub(super) fn state(record: &RunRecord) -> Option<&UpstreamState> {
    record.upstream.as_ref().map(|upstream| &upstream.state)
}

/// Whether the local record says already that there is nothing to do for a task.
pub(super) async fn settled(edge: &Edge, task: &Task) -> Result<Option<Taken>, Stop> {
    let found = edge.shop.bus.runs().await?.get(task.run.as_str()).await?;
    Ok(found.and_then(|(record, _)| settled_by(&record, edge, task)))
}

fn settled_by(record: &RunRecord, edge: &Edge, task: &Task) -> Option<Taken> {
    let (edge, run) = (&edge.client, &task.run);
    let Some(Upstream { task: name, round, epoch, state }) = &record.upstream else {
        return Some(Taken::Closed(format!("edge {edge} has a run of its own that is called {run}")));
    };
    if record.status == RunStatus::Cancelled {
        return Some(Taken::Closed(format!("run {run} is cancelled at edge {edge}")));
    }
    let is_sent = *name == task.task && *state == UpstreamState::Sent;
    (is_sent || (*epoch, *round) > (task.epoch, task.round)).then_some(Taken::Over)
}

/// Takes the local run of a task, and makes it work for this task if it has worked for an older one. As with every
/// change of owner, what an earlier holder of the run still writes is refused from here on.
pub(super) async fn take(edge: &Edge, task: &Task, spec: &RunSpec) -> Result<Taken, Stop> {
    let (bus, run) = (&edge.shop.bus, &task.run);
    let records = bus.runs().await?;
    let (record, revision) = match records.get(run.as_str()).await? {
        Some(found) => found,
        None => {
            let record = fresh(task, spec);
            let revision = records.create(run.as_str(), &record).await?;
            tracing::info!(%run, "run joined");
            (record, revision)
        }
    };
    if let Some(settled) = settled_by(&record, edge, task) {
        return Ok(settled);
    }
    let before = record.upstream.clone();
    let mut record = OwnedRecord::of(record, revision, records);
    if before.as_ref().is_some_and(|before| before.task == task.task) {
        record
            .write(|record| {
                record.epoch += 1;
                // Resumed here.
                if record.status == RunStatus::Pending {
                    record.status = RunStatus::Running;
                }
            })
            .await?;
        return Ok(Taken::Record(Box::new(record)));
    }
    let (tasks, updates) = (bus.task_mark().await?, bus.update_mark().await?);
    let (given_up, rewound) = (record.given_up(), rewound(edge, &record, task).await?);
    record
        .write(|record| {
            record.epoch += 1;
            record.status = RunStatus::Running;
            (record.manifest, record.adapter) = (task.manifest, task.adapter.digest());
            (record.round, record.ledger) = rewound;
            record.open = None;
            record.upstream = Some(upstream(task));
        })
        .await?;
    if !given_up.is_empty() {
        bus.purge_tasks(run, tasks).await?;
    }
    for round in given_up {
        bus.purge_updates(run, Stale::Round(round), updates).await?;
    }
    if let Some(UpstreamState::Answered { kept: Some(kept), .. }) = before.map(|before| before.state) {
        super::send::forget(edge, run, &kept).await;
    }
    Ok(Taken::Record(Box::new(record)))
}

fn upstream(task: &Task) -> Upstream {
    Upstream { task: task.task.clone(), round: task.round, epoch: task.epoch, state: UpstreamState::Begun }
}

fn fresh(task: &Task, spec: &RunSpec) -> RunRecord {
    let now = now_ms();
    RunRecord {
        version: PROTOCOL_VERSION,
        run: task.run.clone(),
        spec: local(spec),
        manifest: task.manifest,
        status: RunStatus::Running,
        round: 0,
        adapter: task.adapter.digest(),
        // Runs that encode adapters ask no edge.
        sent: None,
        moments: None,
        control: None,
        residual: None,
        privacy: None,
        open: None,
        upstream: Some(upstream(task)),
        carried: Vec::new(),
        epoch: 0,
        ledger: ledger::empty(),
        created_ms: now,
        updated_ms: now,
    }
}

/// The run as it is here: a round of it is a plain synchronous one, and what becomes of its sum is decided upstream.
fn local(spec: &RunSpec) -> RunSpec {
    RunSpec {
        mode: ModeSpec::Synchronous,
        aggregation: AggregationSpec::Mean,
        privacy: None,
        over_selection: 0.0,
        soft_deadline_seconds: None,
        keep_updates: false,
        evaluation: EvaluationSpec { every: 0, ..spec.evaluation.clone() },
        ..spec.clone()
    }
}

/// The last round before that of `task`, and the ledger up to it: upstream, a round that failed is run again.
async fn rewound(edge: &Edge, record: &RunRecord, task: &Task) -> Result<(u32, Digest), Stop> {
    if record.round < task.round {
        return Ok((record.round, record.ledger));
    }
    let reports = edge.shop.bus.round_reports().await?.list(record.run.as_str()).await?;
    let before = reports.into_iter().map(|entry| entry.value).filter(|report| report.round < task.round);
    let last = before.max_by_key(|report| report.round);
    Ok(last.map_or((0, ledger::empty()), |report| (report.round, report.ledger)))
}

/// Puts what the clients will ask for into the local blob store; the bytes it took.
pub(super) async fn mirror(edge: &Edge, task: &Task) -> Result<Vec<Transfer>, Stop> {
    let mut fetched = mirror::artifacts(edge, &task.manifest).await?;
    match &task.adapter {
        Payload::Message { digest, data } if Digest::of(data) == *digest => {
            edge.shop.bus.put_blob(data.clone()).await?;
        }
        Payload::Message { .. } => {
            return Err(Stop::Failed("the adapter in the task does not have the digest it declares".into()));
        }
        Payload::Blob { digest, size } => fetched.extend(mirror::adapter(edge, digest, *size).await?),
    }
    Ok(fetched)
}

/// The round of the task: the open one, or a new one of all clients that are present.
pub(super) async fn round(
    drive: &mut Drive<'_>,
    edge: &Edge,
    examples: u64,
    deadline: Instant,
) -> Result<Box<RoundState>, Stop> {
    let started = Instant::now();
    if let Some(open) = drive.record.open.clone() {
        let mut round = RoundState::new(drive, open, started).await?;
        round.taken_over = true;
        return Ok(Box::new(round));
    }
    let left = deadline.saturating_duration_since(started).as_secs_f64() * SHARE;
    let seconds = edge.rounds.deadline_seconds.map_or(left, |wanted| wanted.min(left));
    let present = clients(drive, edge, examples, started + Duration::from_secs_f64(seconds)).await?;
    let asked = u32::try_from(present.len()).unwrap_or(u32::MAX).min(MAX_COHORT);
    let quorum = edge.rounds.quorum.unwrap_or(asked.div_ceil(2)).max(1);
    if asked < quorum {
        return Err(Stop::Failed(format!(
            "edge {} has {asked} clients, its quorum is {quorum}",
            edge.client
        )));
    }
    let number = drive.record.upstream.as_ref().map_or(0, |upstream| upstream.round);
    let seconds = (seconds - started.elapsed().as_secs_f64()).max(0.001);
    let spec = RunSpec {
        cohort: asked,
        min_clients: Some(quorum),
        quorum: Some(quorum),
        round_deadline_seconds: seconds,
        ..drive.record.spec.clone()
    };
    // What is sampled depends on it.
    drive.record.write(|record| record.spec = spec).await?;
    let cohort = select::sampled(drive, &present, number);
    let open = Arc::new(OpenRound {
        round: number,
        epoch: drive.record.epoch,
        examples: cohort.iter().map(|client| present[client].examples).collect(),
        edges: cohort.iter().filter(|client| present[*client].aggregates).cloned().collect(),
        cohort,
        opened_ms: now_ms(),
        // Sums of sums are made in the clear.
        secure: None,
    });
    drive.record.write(|record| record.open = Some(open.clone())).await?;
    let mut round = RoundState::new(drive, open, started).await?;
    round.seconds.select = started.elapsed().as_secs_f64();
    Ok(Box::new(round))
}

/// The clients that are present, once they are enough; those that would have the sum weigh more than `most` are left out.
async fn clients(drive: &Drive<'_>, edge: &Edge, most: u64, until: Instant) -> Result<Trainers, Stop> {
    loop {
        let mut present = select::trainers(drive).await?;
        let mut weight = 0u64;
        let late: BTreeSet<ClientId> = present
            .iter()
            .filter(|(_, trainer)| {
                let with = weight.saturating_add(trainer.examples);
                let fits = with <= most;
                weight = if fits { with } else { weight };
                !fits
            })
            .map(|(client, _)| client.clone())
            .collect();
        present.retain(|client, _| !late.contains(client));
        if present.len() as u64 >= u64::from(edge.rounds.min_clients.max(1)) {
            if !late.is_empty() {
                tracing::info!(run = %drive.record.run, clients = late.len(), "clients came after the round was opened upstream");
            }
            return Ok(present);
        }
        if Instant::now() >= until {
            return Err(Stop::Failed(format!(
                "edge {} has {} of {} clients",
                edge.client,
                present.len(),
                edge.rounds.min_clients.max(1)
            )));
        }
        sleep(POLL).await;
    }
}
