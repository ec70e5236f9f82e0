//! One run in the hands of its owner: from where it stands to its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use fedpeft_bus::{Bus, BusError, Mark, Measured, Records, Stale, StoredTask, Updates};
use fedpeft_privacy::NoiseSecret;
use fedpeft_protocol::{
    ClientId, Digest, Epoch, PROTOCOL_VERSION, Round, RunId,
    event::EventKind,
    presence::Presence,
    round::{Payload, Task, Work},
    run::{Encoded, RunStatus},
    subject,
};
use fedpeft_service::now_ms;
use fedpeft_strategy::{Rule, SpoolError, Strategy, of_spec};
use fedpeft_trace::Instrument;
use futures::{TryStreamExt, stream::FuturesUnordered};
use tokio::sync::OnceCell;

use crate::{
    counted::Counted,
    events::EventLog,
    model::{self, Model},
    phase::{Phase, broadcast, collect, commit, complete, evaluate, secure, select},
    privacy,
    record::OwnedRecord,
    report::Report,
    spool::{Adapter, Spool, Target},
    stop::Stop,
    takeover, traced,
};

/// Requests on their way at once, where there is one for each client.
pub(crate) const IN_FLIGHT: usize = 16;

/// Bytes of adapters in the tasks of one round, at most. Beyond that the broker would store the same adapter for each of
/// many clients, so they fetch its blob, those of one worker once.
const IN_TASKS: u64 = 8 << 20;

/// What all runs of this process share.
#[derive(Clone)]
pub(crate) struct Workshop {
    pub bus: Bus,
    pub spool: Spool,
    pub secret: NoiseSecret,
}

/// What the phases work with.
pub(crate) struct Drive<'a> {
    pub bus: &'a Bus,
    pub record: &'a mut OwnedRecord,
    pub events: &'a EventLog,
    pub clients: Records<Presence>,
    pub reports: Records<Report>,
    pub updates: Updates,
    pub model: Model,
    pub strategy: Arc<dyn Strategy>,
    pub spool: &'a Spool,
    /// What the noise and the samples of private rounds are drawn by.
    pub secret: &'a NoiseSecret,
    /// The present global adapter, once somebody needed it.
    pub adapter: OnceCell<Adapter>,
    /// What clients get of it, likewise, where the run encodes it and it fits a message.
    pub encoded: OnceCell<Bytes>,
    /// The present control variate of the server, likewise.
    pub control: OnceCell<Adapter>,
    /// What the factors of the present global adapter do not hold, likewise, where the run keeps that.
    pub residual: OnceCell<Adapter>,
    /// Names of the last round's evaluation tasks, whose answers are read apart from the updates.
    pub evaluations: BTreeSet<String>,
    /// What clients go on from that keep something between rounds, where the run has such.
    pub counted: Counted,
}

/// Drives a run until it ends, or until it may or can not be driven any more.
pub(crate) async fn to_the_end(shop: &Workshop, run: &RunId) -> Result<(), Stop> {
    let bus = &shop.bus;
    let Some(mut record) = OwnedRecord::take(bus, run).await? else { return Ok(()) };
    tracing::info!(%run, epoch = record.epoch, round = record.round, "driving run");
    let events = EventLog::start(bus, run, record.epoch);
    let ended = match Box::pin(rounds(shop, &mut record, &events)).await {
        Err(Stop::Failed(reason)) => fail(bus, &mut record, &events, reason).await,
        other => other,
    };
    if ended.is_ok() {
        events.finish().await;
    }
    ended
}

async fn rounds(shop: &Workshop, record: &mut OwnedRecord, events: &EventLog) -> Result<(), Stop> {
    let mut drive = Box::pin(Drive::start(shop, record, events)).await?;
    let mut phase = takeover::phase(&drive).await?;
    loop {
        let span = |round, name| traced::phase(drive.record, round, name);
        phase = match phase {
            Phase::Select => select::run(&mut drive).await?,
            Phase::Broadcast(round) => {
                let span = span(round.open.round, "broadcast");
                broadcast::run(&mut drive, round).instrument(span).await?
            }
            Phase::Collect(round) => {
                let span = span(round.open.round, "collect");
                collect::run(&mut drive, round).instrument(span).await?
            }
            Phase::Secure(round) => {
                let span = span(round.open.round, "secure");
                secure::run(&mut drive, round).instrument(span).await?
            }
            Phase::Commit(round) => {
                let span = span(round.open.round, "commit");
                commit::run(&mut drive, round).instrument(span).await?
            }
            Phase::Evaluate(committed) => {
                let span = span(committed.report.round, "evaluate");
                evaluate::run(&mut drive, committed).instrument(span).await?
            }
            Phase::Complete => return complete::run(&mut drive).await,
        };
    }
}

/// Ends a run that cannot go on. Its open round is given up; `resume` begins it anew.
async fn fail(bus: &Bus, record: &mut OwnedRecord, events: &EventLog, reason: String) -> Result<(), Stop> {
    tracing::warn!(run = %record.run, reason, "run failed");
    traced::fail(record, &reason);
    let (tasks, updates) = (bus.task_mark().await?, bus.update_mark().await?);
    let given_up = record.given_up();
    record.end(RunStatus::Failed { reason }).await?;
    bus.purge_tasks(&record.run, tasks).await?;
    for round in given_up {
        bus.purge_updates(&record.run, Stale::Round(round), updates).await?;
    }
    let model = Model::load(bus, &record.manifest, &record.spec).await.ok();
    events.emit(model::status_event(record, model.as_ref()));
    Ok(())
}

impl<'a> Drive<'a> {
    /// What the phases need for a run.
    pub async fn start(
        Workshop { bus, spool, secret }: &'a Workshop,
        record: &'a mut OwnedRecord,
        events: &'a EventLog,
    ) -> Result<Self, Stop> {
        let model = Model::load(bus, &record.manifest, &record.spec).await?;
        let mut drive = Self {
            bus,
            events,
            clients: bus.clients().await?,
            reports: bus.round_reports_with().await?,
            updates: bus.updates_of_size(&record.run, model.update_bytes(bus)).await?,
            strategy: of_spec(&record.spec.strategy).into(),
            record,
            model,
            spool,
            secret,
            adapter: OnceCell::new(),
            encoded: OnceCell::new(),
            control: OnceCell::new(),
            residual: OnceCell::new(),
            evaluations: BTreeSet::new(),
            counted: Counted::default(),
        };
        if drive.record.spec.has_memory() {
            let reports = bus.round_reports().await?.list(drive.record.run.as_str()).await?;
            let reports = reports.into_iter().map(|entry| entry.value);
            // A report beyond the record's round is that of a commit which did not come to its end.
            let committed = reports.filter(|report| report.round <= drive.record.round);
            drive.counted = Counted::of(committed.collect());
        }
        Ok(drive)
    }

    /// A task on the present global adapter, one of `tasks` of a round.
    pub async fn task(
        &self,
        (round, epoch): (Round, Epoch),
        tasks: usize,
        client: &ClientId,
        work: Work,
        deadline_ms: u64,
    ) -> Result<Task, Stop> {
        Ok(self.task_on(self.payload(tasks).await?, (round, epoch), client, work, deadline_ms))
    }

    /// A task on an adapter of a round that was opened under this token.
    pub fn task_on(
        &self,
        adapter: Payload,
        (round, epoch): (Round, Epoch),
        client: &ClientId,
        work: Work,
        deadline_ms: u64,
    ) -> Task {
        let run = &self.record.run;
        Task {
            version: PROTOCOL_VERSION,
            run: run.clone(),
            round,
            epoch,
            task: subject::task_id(run, round, client, work.name(), epoch),
            manifest: self.record.manifest,
            adapter,
            downlink: self.record.spec.downlink,
            residual: self.residual(),
            work,
            deadline_ms,
            // A client that is told of a deadline in the past should not begin.
            lifetime_ms: deadline_ms.saturating_sub(now_ms()).max(1),
        }
    }

    /// The global adapter for one of `tasks` clients.
    async fn payload(&self, tasks: usize) -> Result<Payload, Stop> {
        if let Some(Encoded { digest, size }) = self.record.sent {
            if !self.model.leaves_room(self.bus, size) || is_for_many(size, tasks) {
                return Ok(Payload::Blob { digest, size });
            }
            let fetch = || async { Ok::<_, Stop>(self.bus.get_blob(&digest, size).await?.0) };
            let data = self.encoded.get_or_try_init(fetch).await?.clone();
            return Ok(Payload::Message { digest, data });
        }
        let digest = self.record.adapter;
        self.named(digest, tasks, self.global(&digest)).await
    }

    /// The server's control variate for one of `tasks` clients, where the strategy has one.
    pub async fn control(&self, tasks: usize) -> Result<Option<Payload>, Stop> {
        let Some(digest) = self.record.control else { return Ok(None) };
        self.named(digest, tasks, self.present_control(&digest)).await.map(Some)
    }

    /// The server's control variate, whose digest this is.
    pub async fn present_control(&self, digest: &Digest) -> Result<Adapter, Stop> {
        self.control.get_or_try_init(|| self.fetched(digest)).await.cloned()
    }

    /// The name of what the factors of the present global adapter do not hold. It is a dense matrix for each tuned layer, too
    /// much for a message.
    fn residual(&self) -> Option<Payload> {
        let (digest, layout) = (self.record.residual?, self.model.residual.as_ref()?);
        Some(Payload::Blob { digest, size: layout.bytes() })
    }

    /// What the factors of the present global adapter do not hold; nothing before the first round.
    pub async fn present_residual(&self) -> Result<Option<Adapter>, Stop> {
        let Some(payload) = self.residual() else { return Ok(None) };
        let (digest, size) = (payload.digest(), payload.size());
        let residual = self.residual.get_or_try_init(|| self.stored(&digest, size)).await?;
        Ok(Some(residual.clone()))
    }

    /// What has the shape of the adapter: in the message where it fits and is not for many, else by the name of its blob.
    async fn named(
        &self,
        digest: Digest,
        tasks: usize,
        adapter: impl Future<Output = Result<Adapter, Stop>>,
    ) -> Result<Payload, Stop> {
        if self.fits_a_message()
            && !is_for_many(self.model.layout.bytes(), tasks)
            && let Adapter::Held(data) = adapter.await?
        {
            return Ok(Payload::Message { digest, data });
        }
        Ok(Payload::Blob { digest, size: self.model.layout.bytes() })
    }

    /// Whether adapters travel in messages, and are held in memory.
    pub fn fits_a_message(&self) -> bool {
        self.model.fits_a_message(self.bus)
    }

    /// Sends tasks again that are not stored any more as they were sent: a former owner that slept, or whoever else may
    /// send tasks, has replaced them, and a client that has not begun would wait for ever.
    pub async fn restore(
        &self,
        tasks: Vec<(ClientId, Task)>,
    ) -> Result<Vec<(ClientId, Task, Measured)>, Stop> {
        let Some(stored) = self.stored_tasks().await? else { return Ok(vec![]) };
        let mut sent = Vec::new();
        for (client, task) in tasks {
            if let Some(measured) = self.restore_one(&stored, &client, &task).await? {
                sent.push((client, task, measured));
            }
        }
        Ok(sent)
    }

    /// The tasks that are stored; none, if the broker does not say now: there is a next time.
    pub async fn stored_tasks(&self) -> Result<Option<BTreeMap<ClientId, StoredTask>>, Stop> {
        match self.bus.stored_tasks(&self.record.run).await {
            Err(error) if error.is_transient() => {
                tracing::debug!(run = %self.record.run, %error, "tasks not listed");
                Ok(None)
            }
            stored => Ok(Some(stored?)),
        }
    }

    /// Sends a task again, as [`Self::restore`] does, where it is not among these.
    pub async fn restore_one(
        &self,
        stored: &BTreeMap<ClientId, StoredTask>,
        client: &ClientId,
        task: &Task,
    ) -> Result<Option<Measured>, Stop> {
        let found = stored.get(client);
        if found.is_some_and(|found| found.is(task, client)) {
            return Ok(None);
        }
        // A former owner would replace the tasks of its successor.
        self.record.confirm().await?;
        tracing::warn!(run = %self.record.run, round = task.round, %client, "task replaced, sending it again");
        Ok(Some(self.bus.publish_task_again(task, client, found).await?))
    }

    /// What `pick` takes of the present clients that speak our protocol: there may be many, and few of their words are
    /// needed.
    pub async fn present<R>(
        &self,
        pick: impl Fn(Presence) -> Option<R>,
    ) -> Result<BTreeMap<ClientId, R>, Stop> {
        let ours = |presence: Presence| {
            if presence.version == PROTOCOL_VERSION { pick(presence) } else { None }
        };
        Ok(self.clients.pick(ours).await?)
    }

    /// Those present.
    pub async fn present_clients(&self) -> Result<BTreeMap<ClientId, ()>, Stop> {
        self.present(|_| Some(())).await
    }

    /// What the open round, or the next one, does with updates.
    pub fn rule(&self) -> Result<Rule, Stop> {
        let privacy = self.record.privacy.as_ref();
        let private = privacy.map(|state| privacy::of_updates(&self.record.spec, state)).transpose();
        let private = private.map_err(|error| Stop::Failed(error.to_string()))?;
        Ok(Rule::of_spec(&self.record.spec, private.as_ref()))
    }

    /// A global adapter of this run: the present one, or one of the past.
    pub async fn global(&self, digest: &Digest) -> Result<Adapter, Stop> {
        if *digest == self.record.adapter {
            return self.adapter.get_or_try_init(|| self.fetched(digest)).await.cloned();
        }
        self.fetched(digest).await
    }

    async fn fetched(&self, digest: &Digest) -> Result<Adapter, Stop> {
        self.stored(digest, self.model.layout.bytes()).await
    }

    /// A blob of `size` bytes: an adapter, what a strategy keeps for each of its values, or what its factors do not hold.
    pub async fn stored(&self, digest: &Digest, size: u64) -> Result<Adapter, Stop> {
        if self.model.is_held(self.bus, size) {
            return Ok(Adapter::Held(self.bus.get_blob(digest, size).await?.0));
        }
        let get = async |file| self.bus.get_blob_into(digest, size, file).await;
        Ok(self.spool.fetched(size, get).await??.0)
    }

    /// Where `size` bytes are written: to memory where adapters travel in messages, else to a file.
    pub fn target(&self, size: u64) -> Result<Target, Stop> {
        Ok(self.model.target(self.bus, self.spool, size)?)
    }

    /// Stores an adapter as a blob.
    pub async fn store(&self, adapter: &Adapter) -> Result<Digest, Stop> {
        adapter.store(self.bus).await.map_err(|error| match error {
            BusError::File { source, .. } => self.spool.unusable(source).into(),
            error => error.into(),
        })
    }

    /// What failed while adapters were added up.
    pub fn broken(&self, error: SpoolError) -> Stop {
        match error {
            SpoolError::Io(source) => self.spool.unusable(source).into(),
            SpoolError::Accumulate(error) => Stop::Failed(error.to_string()),
        }
    }

    /// Says that an update was refused, and why.
    pub fn refuse(&self, round: Round, client: &ClientId, reason: String) {
        tracing::warn!(run = %self.record.run, round, %client, reason, "update refused");
        self.events.emit(EventKind::UpdateRejected { round, client: client.clone(), reason });
    }

    /// Why nobody waits for an update of `round`.
    pub fn closed(&self, round: Round) -> String {
        match (&self.record.open, round <= self.record.round) {
            (_, true) => format!("round {round} is closed, the update came too late"),
            (Some(open), false) => format!("round {round} is not open, round {} is", open.round),
            (None, false) => format!("round {round} is not open"),
        }
    }

    /// Forgets the updates of clients for rounds that were stored before `mark`, and their tasks of before `tasks`.
    pub async fn forget_all(
        &self,
        updates: Vec<(Round, &ClientId)>,
        mark: Mark,
        tasks: Option<Mark>,
    ) -> Result<(), Stop> {
        let (mut updates, mut forgetting) = (updates.into_iter(), FuturesUnordered::new());
        loop {
            while forgetting.len() < IN_FLIGHT
                && let Some((round, client)) = updates.next()
            {
                let run = &self.record.run;
                forgetting.push(async move {
                    if let Some(tasks) = tasks {
                        self.bus.purge_task(run, client, tasks).await?;
                    }
                    self.bus.purge_updates(run, Stale::Client(round, client), mark).await
                });
            }
            if forgetting.try_next().await?.is_none() {
                return Ok(());
            }
        }
    }

    /// Forgets the updates of a client that were stored for a round for which nobody waits.
    ///
    /// Only an owner may judge that: one that slept and does not know of its end would take its successor's updates
    /// for strays. So it first makes sure that it was the owner when the last of them was stored.
    pub async fn forget(&self, round: Round, client: &ClientId) -> Result<(), Stop> {
        let mark = self.bus.update_mark().await?;
        self.record.confirm().await?;
        self.bus.purge_updates(&self.record.run, Stale::Client(round, client), mark).await?;
        Ok(())
    }

    /// Forgets the task of a client that was answered, and the answer, as [`Self::forget`] does.
    pub async fn forget_task(&self, round: Round, client: &ClientId) -> Result<(), Stop> {
        let mark = self.bus.task_mark().await?;
        // First the task: a client that finds it still finds its answer.
        self.record.confirm().await?;
        self.bus.purge_task(&self.record.run, client, mark).await?;
        self.forget(round, client).await
    }
}

/// Whether an adapter of this size is too much to be in each of so many tasks.
fn is_for_many(size: u64, tasks: usize) -> bool {
    size.saturating_mul(tasks as u64) > IN_TASKS
}
