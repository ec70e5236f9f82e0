//! The control API: `runs.create`, `runs.get`, `runs.list`, `runs.cancel`, `runs.resume`.
//!
//! It changes records and drives nothing: any aggregator may answer for any run, whoever owns it. The owner
//! learns of a change because its next write fails.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use fedpeft_bus::{ApiError, Bus, BusError, Entry, Service, Stale};
use fedpeft_protocol::{
    Digest, PROTOCOL_VERSION, RunId,
    api::{CreateRun, Empty, RunList, RunRequest},
    ledger,
    round::RoundReport,
    run::{RunRecord, RunSpec, RunStatus, RunView},
    wire::Format,
};
use fedpeft_service::now_ms;
use tokio::{sync::Notify, task::spawn_blocking};

use crate::{
    encoding, events,
    model::{self, Model, ModelError},
    privacy,
    record::given_up,
    secure,
    spool::Spool,
    traced,
};

/// Largest cohort: what is known of it is held in memory, about a kilobyte for each client.
pub(crate) const MAX_COHORT: u32 = 10_000;
/// Clients of an open round that a reply names.
const MAX_NAMED: usize = 512;
/// Clients whose outcomes are held to see whether they fit a reply, all rounds together.
const MAX_TOLD: usize = 4096;
/// Longest deadline: thirty days.
const MAX_DEADLINE_SECONDS: f64 = 30.0 * 24.0 * 3600.0;
/// The owner of a run writes a few times per round; losing to it so often in a row means something else.
const ATTEMPTS: u32 = 20;

/// Registers the endpoints. `changed` is told of every change of a run.
pub(crate) async fn serve(bus: &Bus, spool: &Spool, changed: &Arc<Notify>) -> Result<Service, BusError> {
    let mut service = bus.service("fedpeft-aggregator", "creates, shows, cancels and resumes runs").await?;
    let api = Api { bus: bus.clone(), spool: spool.clone(), changed: changed.clone() };
    let with = |api: &Api| api.clone();
    let (create, get, list, cancel, resume) = (with(&api), with(&api), with(&api), with(&api), api);
    service
        .endpoint("runs.create", move |request| create.clone().create(request))
        .await?
        .endpoint("runs.get", move |request| get.clone().get(request))
        .await?
        .endpoint("runs.list", move |request| list.clone().list(request))
        .await?
        .endpoint("runs.cancel", move |request| cancel.clone().cancel(request))
        .await?
        .endpoint("runs.resume", move |request| resume.clone().resume(request))
        .await?;
    // The broker handles a connection's messages in order: once it answers this, it knows the endpoints.
    bus.runs().await?;
    Ok(service)
}

#[derive(Clone)]
struct Api {
    bus: Bus,
    spool: Spool,
    changed: Arc<Notify>,
}

impl Api {
    async fn create(self, request: CreateRun) -> Result<RunRecord, ApiError> {
        let CreateRun { run, spec } = request;
        validate(&spec)?;
        let run = match run {
            Some(run) => run,
            None => made_up_name()?,
        };
        let asked = spec.clone();
        let privacy = spawn_blocking(move || privacy::begin(&asked)).await.map_err(ApiError::internal)?;
        let privacy = privacy.map_err(ApiError::bad_request)?;
        let version = model::resolve(&self.bus, &spec.model).await?;
        let model = Model::load(&self.bus, &version.manifest, &spec).await?;
        secure::check(&spec, privacy.as_ref(), model.layout.values())
            .map_err(|error| ApiError::bad_request(format!("run specification: {error}")))?;
        let initial = model.initial_adapter(&self.bus, &self.spool).await?;
        let (initial, sent) = encoding::sent((&self.bus, &self.spool), &model, &spec, 0, initial).await?;
        let adapter = initial.store(&self.bus).await?;
        let control = match spec.scaffold_population() {
            Some(_) => Some(model.zeros(&self.bus, &self.spool)?.store(&self.bus).await?),
            None => None,
        };
        let now = now_ms();
        let record = RunRecord {
            version: PROTOCOL_VERSION,
            run: run.clone(),
            spec,
            manifest: version.manifest,
            status: RunStatus::Pending,
            round: 0,
            adapter,
            sent,
            moments: None,
            control,
            residual: None,
            privacy,
            open: None,
            upstream: None,
            carried: Vec::new(),
            epoch: 0,
            ledger: ledger::empty(),
            created_ms: now,
            updated_ms: now,
        };
        match self.bus.runs().await?.create(run.as_str(), &record).await {
            Ok(_) => {}
            Err(error) if error.is_conflict() => {
                return Err(ApiError::conflict(format!("run {run} exists: choose another name")));
            }
            Err(error) => return Err(error.into()),
        }
        tracing::info!(%run, model = %version.name, version = version.number, "run created");
        events::publish_one(&self.bus, &run, model::status_event(&record, Some(&model))).await;
        self.changed.notify_one();
        Ok(record)
    }

    async fn get(self, RunRequest { run }: RunRequest) -> Result<RunView, ApiError> {
        let found = self.bus.runs().await?.get(run.as_str()).await?;
        let (record, _) = found.ok_or_else(|| unknown(&run))?;
        let (reports, told) = (self.bus.round_reports().await?, AtomicUsize::new(0));
        let shortened = |entry: Entry<RoundReport>| {
            let mut report = entry.value;
            let count = report.clients.len();
            if told.fetch_add(count, Ordering::Relaxed) + count > MAX_TOLD {
                report.clients = Vec::new();
            }
            report
        };
        let mut rounds = reports.list_as(run.as_str(), &shortened).await?;
        // A report beyond the record's round is that of a commit which did not come to its end.
        rounds.retain(|report| report.round <= record.round);
        rounds.sort_by_key(|report| report.round);
        let mut view = RunView { record: shortened_record(record), rounds };
        // A reply tells of all clients or of none. JSON takes a little more.
        let size = Format::MessagePack.encode(&view).map_err(ApiError::internal)?.len();
        if told.into_inner() > MAX_TOLD || size + size / 4 > self.bus.max_payload() {
            view.rounds.iter_mut().for_each(|report| report.clients.clear());
        }
        Ok(view)
    }

    async fn list(self, Empty {}: Empty) -> Result<RunList, ApiError> {
        let entries = self.bus.runs().await?.list_top().await?;
        let mut runs: Vec<_> = entries.into_iter().map(|entry| shortened_record(entry.value)).collect();
        runs.sort_by(|a, b| b.created_ms.cmp(&a.created_ms).then_with(|| a.run.cmp(&b.run)));
        Ok(RunList { runs })
    }

    async fn cancel(self, RunRequest { run }: RunRequest) -> Result<RunRecord, ApiError> {
        let (tasks, updates) = (self.bus.task_mark().await?, self.bus.update_mark().await?);
        let before = self
            .change(&run, |record| match &record.status {
                RunStatus::Pending | RunStatus::Running => Ok(RunStatus::Cancelled),
                ended => Err(format!("run {run} is {}: only active runs can be cancelled", ended.word())),
            })
            .await?;
        traced::fail(&before, "the run was cancelled");
        // Purged after the record says so: the owner opens no round any more.
        self.bus.purge_tasks(&run, tasks).await?;
        for round in given_up(&before) {
            self.bus.purge_updates(&run, Stale::Round(round), updates).await?;
        }
        self.announce(ended(RunStatus::Cancelled, before)).await
    }

    async fn resume(self, RunRequest { run }: RunRequest) -> Result<RunRecord, ApiError> {
        let before = self
            .change(&run, |record| match &record.status {
                RunStatus::Failed { .. } | RunStatus::Cancelled => Ok(RunStatus::Pending),
                RunStatus::Completed => Err(format!("run {run} is completed: create another one")),
                active => Err(format!("run {run} is {}: there is nothing to resume", active.word())),
            })
            .await?;
        self.announce(ended(RunStatus::Pending, before)).await
    }

    /// Gives a run another status and closes its open round; returns the record as it was before.
    async fn change(
        &self,
        run: &RunId,
        next: impl Fn(&RunRecord) -> Result<RunStatus, String>,
    ) -> Result<RunRecord, ApiError> {
        let records = self.bus.runs().await?;
        for _ in 0..ATTEMPTS {
            let (before, revision) = records.get(run.as_str()).await?.ok_or_else(|| unknown(run))?;
            let status = next(&before).map_err(ApiError::conflict)?;
            let after = RunRecord { updated_ms: now_ms(), ..ended(status, before.clone()) };
            match records.update(run.as_str(), &after, revision).await {
                Ok(_) => return Ok(RunRecord { updated_ms: after.updated_ms, ..before }),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ApiError::conflict(format!("run {run} changes too fast: try again")))
    }

    async fn announce(&self, record: RunRecord) -> Result<RunRecord, ApiError> {
        tracing::info!(run = %record.run, status = record.status.word(), "run changed on request");
        self.changed.notify_one();
        let model = Model::load(&self.bus, &record.manifest, &record.spec).await.ok();
        events::publish_one(&self.bus, &record.run, model::status_event(&record, model.as_ref())).await;
        Ok(record)
    }
}

/// The record as it fits a reply: of a large open round, without the clients.
fn shortened_record(mut record: RunRecord) -> RunRecord {
    if let Some(open) = record.open.as_mut().filter(|open| open.cohort.len() > MAX_NAMED) {
        let open = Arc::make_mut(open);
        open.cohort = Vec::new();
        open.examples = Vec::new();
        open.edges = Vec::new();
        open.secure = None;
    }
    if record.carried.len() > MAX_NAMED {
        record.carried = Vec::new();
    }
    record
}

/// The record without a round in progress.
fn ended(status: RunStatus, record: RunRecord) -> RunRecord {
    RunRecord { status, open: None, carried: Vec::new(), ..record }
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::NotPublished(_) => Self::not_found(error),
            ModelError::Manifest { .. }
            | ModelError::Checkpoint { .. }
            | ModelError::Scope(_)
            | ModelError::Aggregation(..)
            | ModelError::NoResiduals
            | ModelError::LocalFactors
            | ModelError::Features(_)
            | ModelError::Downlink(_) => Self::bad_request(error),
            ModelError::Bus(error) => error.into(),
            ModelError::Spool(_) | ModelError::BrokenOff(_) => Self::internal(error),
        }
    }
}

fn validate(spec: &RunSpec) -> Result<(), ApiError> {
    spec.validate().map_err(|error| ApiError::bad_request(format!("run specification: {error}")))?;
    let sampled = spec.sampled();
    if sampled > MAX_COHORT {
        let message = format!(
            "run specification: cohort and over_selection ask {sampled} clients: at most {MAX_COHORT} take part in a round"
        );
        return Err(ApiError::bad_request(message));
    }
    for (field, seconds) in [
        ("round_deadline_seconds", spec.round_deadline_seconds),
        ("evaluation.deadline_seconds", spec.evaluation.deadline_seconds),
    ] {
        if seconds > MAX_DEADLINE_SECONDS {
            let message = format!("run specification: {field} is {seconds}: at most {MAX_DEADLINE_SECONDS}");
            return Err(ApiError::bad_request(message));
        }
    }
    Ok(())
}

fn unknown(run: &RunId) -> ApiError {
    ApiError::not_found(format!("there is no run {run}"))
}

fn made_up_name() -> Result<RunId, ApiError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let unique = Digest::of(format!("{}/{}/{count}", std::process::id(), now_ms()));
    RunId::new(format!("run-{}", unique.short())).map_err(ApiError::internal)
}
