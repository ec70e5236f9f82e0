//! The simulation itself: start, submit, follow.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use fedpeft_bus::{Bus, BusConfig, BusError};
use fedpeft_protocol::{
    RunId,
    api::{CreateRun, Empty, ModelList, RunList, RunRequest},
    run::{RunRecord, RunStatus, RunView},
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::Instant};

use super::{
    fleet::{Fleet, WorkerOptions},
    plan::{Plan, Worker},
    store::Store,
    supervisor::{Incident, Supervisor},
};
use crate::{
    config::Config,
    connect, follow, records,
    view::{Notes, View},
};

/// Time for a service to answer after it was started.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// Time for all clients to be present: they read their data and load the runtime first.
const PRESENT_WITHIN: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(100);

/// All that a simulation needs.
pub struct Simulation<'a> {
    /// The user's broker, where there is one.
    pub broker: Option<BusConfig>,
    /// The name asked for.
    pub name: Option<RunId>,
    /// What to run.
    pub config: &'a Config,
    /// Which processes.
    pub plan: &'a Plan,
    /// Which programs.
    pub fleet: &'a Fleet,
    /// The artifacts to push.
    pub folder: Option<&'a Path>,
    /// Where everything lies.
    pub store: &'a Store,
}

impl Simulation<'_> {
    /// Starts all processes, runs the run to its end; returns what became of it and the bytes of one adapter.
    pub async fn run(
        mut self,
        supervisor: &mut Supervisor,
        mut incidents: mpsc::UnboundedReceiver<Incident>,
        view: &mut View,
    ) -> Result<(RunView, Option<u64>)> {
        let notes = view.notes();
        let begun = tokio::select! {
            begun = self.begin(supervisor, view) => begun?,
            error = startup_failure(&mut incidents, &notes) => return Err(error),
        };
        let Begun { bus, run } = begun;
        let mut crew = Crew::new(self.plan, self.config);
        let finished = tokio::select! {
            finished = follow::to_the_end(&bus, &run, view) => finished?,
            error = crew.watch(&mut incidents, &notes) => return Err(error),
        };
        let adapter_bytes = bus.blob_size(&finished.record.adapter).await.unwrap_or_default();
        Ok((finished, adapter_bytes))
    }

    async fn begin(&mut self, supervisor: &mut Supervisor, view: &View) -> Result<Begun> {
        view.spin("starting the broker and the registry");
        let (broker, patience) = self.start_broker(supervisor)?;
        let bus = reach(&broker, patience).await?;
        supervisor.start(self.fleet.registry(&broker))?;
        let (exporter, metrics) = self.fleet.exporter(&broker, self.config.simulate.exporter)?;
        supervisor.start(exporter)?;
        self.start_workers(supervisor, &broker)?;
        if let Some(folder) = self.folder {
            answers::<ModelList>(&bus, "models.list").await?;
            let name = &self.config.model.name;
            let published = fedpeft_registry::push_folder(&bus, folder, name, |file, done, size| {
                view.spin(format!("pushing {file}: {} %", 100 * done / size.max(1)));
            });
            // A version that was asked for must be the one that these artifacts are.
            let number = published.await?.number;
            if self.config.model.version.is_some_and(|asked| asked != number) {
                bail!("the artifacts are version {number} of {name}: do not ask for another one");
            }
        }
        self.all_present(&bus, view).await?;
        let unfinished = self.unfinished(&bus).await?;
        supervisor.start(self.fleet.aggregator(&broker))?;
        view.spin("starting the aggregator");
        answers::<RunList>(&bus, "runs.list").await?;
        let run = self.submit(&bus, unfinished).await?;
        view.note(&format!("run {run} on {}, metrics on http://{metrics}/metrics", broker.server));
        Ok(Begun { bus, run })
    }

    /// The broker, and how long it may take to answer: one that is there already answers at once.
    fn start_broker(&mut self, supervisor: &mut Supervisor) -> Result<(BusConfig, Duration)> {
        if let Some(broker) = self.broker.take() {
            return Ok((broker, Duration::ZERO));
        }
        let (program, broker) =
            self.fleet.broker(&self.store.path("nats"))?.context("no broker was asked for")?;
        supervisor.start(program)?;
        Ok((broker, UP_WITHIN))
    }

    fn start_workers(&self, supervisor: &mut Supervisor, broker: &BusConfig) -> Result<()> {
        let data = self.store.path("data.toml");
        let text = toml::to_string(&self.config.data).context("the data section cannot be written")?;
        std::fs::write(&data, text).with_context(|| format!("{} cannot be written", data.display()))?;
        let cache = self.store.path("cache");
        let options = WorkerOptions {
            device: &self.config.simulate.device,
            data: &data,
            cache: &cache,
            lora_ranks: &self.config.simulate.lora_ranks,
            simulate_faults: self.config.run.stability.is_some(),
            pack_weights: self.config.simulate.pack_weights,
        };
        for worker in &self.plan.workers {
            supervisor.start(self.fleet.worker(broker, worker, self.plan.threads, &options))?;
        }
        match self.fleet.evaluator(broker, self.plan, &options) {
            Some(evaluator) => supervisor.start(evaluator),
            None => Ok(()),
        }
    }

    /// Waits until every client of the plan is present.
    async fn all_present(&self, bus: &Bus, view: &View) -> Result<()> {
        let (clients, wanted) = (bus.clients().await?, self.plan.clients());
        let give_up = Instant::now() + PRESENT_WITHIN;
        loop {
            let present: BTreeSet<String> = clients.keys("").await?.into_iter().collect();
            let missing: Vec<&String> = wanted.iter().filter(|client| !present.contains(*client)).collect();
            let Some(first) = missing.first() else { return Ok(()) };
            if Instant::now() > give_up {
                bail!(
                    "{first} and {} more clients were not present after {} s",
                    missing.len() - 1,
                    PRESENT_WITHIN.as_secs()
                );
            }
            view.spin(format!("waiting for clients: {} of {}", wanted.len() - missing.len(), wanted.len()));
            tokio::time::sleep(POLL).await;
        }
    }

    /// The run to go on with: the one of the given name, or of our own store the newest that is unfinished.
    async fn unfinished(&self, bus: &Bus) -> Result<Option<RunRecord>> {
        let ours = |record: &RunRecord| match &self.name {
            Some(name) => record.run == *name,
            None => self.fleet.has_broker(),
        };
        let Some(record) = records::all(bus).await?.into_iter().find(ours) else { return Ok(None) };
        match record.status {
            RunStatus::Pending | RunStatus::Running | RunStatus::Failed { .. } => {}
            // A name that is taken is refused when the run is created.
            RunStatus::Completed | RunStatus::Cancelled => return Ok(None),
        }
        if record.spec != self.config.run || self.store.remembered() != Some(self.asked()?) {
            bail!(
                "run {} is unfinished and was begun with another configuration: use that one to go on with it, or \
                 another --store or --name to begin a new one",
                record.run
            );
        }
        Ok(Some(record))
    }

    /// What must be equal for a run to be gone on with.
    fn asked(&self) -> Result<serde_json::Value> {
        let Config { run, model, data, simulate: _ } = self.config;
        Ok(serde_json::json!({ "run": run, "model": model, "data": data }))
    }

    async fn submit(&self, bus: &Bus, unfinished: Option<RunRecord>) -> Result<RunId> {
        if let Some(record) = unfinished {
            if matches!(record.status, RunStatus::Failed { .. }) {
                let request = RunRequest { run: record.run.clone() };
                let _: RunRecord = bus.request("runs.resume", &request).await?;
            }
            return Ok(record.run);
        }
        self.store.remember(&self.asked()?)?;
        let request = CreateRun { run: self.name.clone(), spec: self.config.run.clone() };
        let record: RunRecord = bus.request("runs.create", &request).await?;
        Ok(record.run)
    }
}

struct Begun {
    bus: Bus,
    run: RunId,
}

/// Connects to a broker that may still be starting.
async fn reach(broker: &BusConfig, patience: Duration) -> Result<Bus> {
    let give_up = Instant::now() + patience;
    loop {
        match connect::open(broker).await {
            Ok(bus) => return Ok(bus),
            Err(error) if Instant::now() >= give_up => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Waits until a service answers at `endpoint`.
async fn answers<Reply: DeserializeOwned>(bus: &Bus, endpoint: &str) -> Result<()> {
    let give_up = Instant::now() + UP_WITHIN;
    loop {
        match bus.request::<Empty, Reply>(endpoint, &Empty {}).await {
            Ok(_) => return Ok(()),
            Err(BusError::NoService { .. } | BusError::Timeout { .. }) if Instant::now() < give_up => {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The first incident during the start that it cannot survive.
async fn startup_failure(incidents: &mut mpsc::UnboundedReceiver<Incident>, notes: &Notes) -> anyhow::Error {
    loop {
        match incidents.recv().await {
            Some(Incident::Died { report }) => return anyhow!(report),
            Some(Incident::Lost { name, end }) => {
                return anyhow!("{name} ended ({end}) before the run began");
            }
            Some(Incident::Restarted { name, end }) => notes.say(&restarted(&name, &end)),
            None => std::future::pending().await,
        }
    }
}

fn restarted(name: &str, end: &str) -> String {
    format!("{name} ended ({end}) and was started again")
}

/// The training workers that are left.
struct Crew<'a> {
    left: Vec<&'a Worker>,
    needed: u32,
}

impl<'a> Crew<'a> {
    fn new(plan: &'a Plan, config: &Config) -> Self {
        Self { left: plan.workers.iter().collect(), needed: config.run.min_clients() }
    }

    /// Tells of incidents; returns when too few clients are left for a round.
    async fn watch(
        &mut self,
        incidents: &mut mpsc::UnboundedReceiver<Incident>,
        notes: &Notes,
    ) -> anyhow::Error {
        loop {
            match incidents.recv().await {
                Some(Incident::Died { report }) => return anyhow!(report),
                Some(Incident::Restarted { name, end }) => notes.say(&restarted(&name, &end)),
                Some(Incident::Lost { name, end }) => {
                    let hosted = self.left.iter().filter(|worker| worker.name == name);
                    let names: Vec<String> = hosted.flat_map(|worker| worker.names()).collect();
                    self.left.retain(|worker| worker.name != name);
                    let left: u32 = self.left.iter().map(|worker| worker.clients).sum();
                    if left < self.needed {
                        return anyhow!(
                            "{name} ended ({end}): {left} clients are left, a round needs {}",
                            self.needed
                        );
                    }
                    notes.say(&format!("{name} ended ({end}): without {}", names.join(", ")));
                }
                None => std::future::pending().await,
            }
        }
    }
}
