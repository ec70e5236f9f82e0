//! `fedpeft simulate`: a whole federation on this machine, as real processes around a real broker.
//!
//! | file | what |
//! | --- | --- |
//! | [`plan`] | which processes host which clients |
//! | [`programs`] | where programs and libraries are |
//! | [`store`] | the folder that holds everything of a simulation |
//! | [`supervisor`] | child processes |
//! | [`fleet`] | starting them in order |
//! | [`model`] | building artifacts and pushing them |
//! | [`outcome`] | from the submission to the last round |

mod fleet;
mod memory;
mod model;
mod outcome;
mod plan;
pub mod programs;
mod store;
mod supervisor;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use fedpeft_artifacts::ArtifactFolder;
use fedpeft_bus::BusConfig;
use fedpeft_data::Federation;
use fedpeft_protocol::{
    RunId,
    run::{AggregationSpec, RunView, StrategySpec},
};

use crate::{
    config::{Config, DataOverrides, Document, RunOverrides, SimulationOverrides, Source},
    connect,
    output::{self, Interrupted},
    report::{Format, Processes, Report},
    view::{Sink, View},
};
use fleet::Fleet;
use plan::Plan;
use programs::Places;
use store::Store;

/// What to simulate.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fedpeft simulate --config run.toml
  fedpeft simulate --config run.toml --clients 20 --cohort 8 --alpha 0.1 --json report.json --html report.html
  fedpeft simulate --config run.toml --method lora --residual --aggregation lora-exact
  fedpeft simulate --config run.toml --store state       # again with the same store: goes on
  fedpeft simulate --config run.toml --server nats://127.0.0.1:4222

A worker that is killed leaves the federation: rounds close at their quorum or deadline without it. Any other
process that is killed is started again, and the run goes on from its last durable round.")]
pub struct Args {
    /// File with the sections [run], [model], [data] and [simulate].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where relative paths of that file start [default: its folder].
    #[arg(long, value_name = "DIR", requires = "config")]
    relative_to: Option<PathBuf>,
    /// Folder that keeps the state of the simulation, for another one to go on from [default: a temporary one].
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Keep the temporary folder, with its logs, when all went well too.
    #[arg(long)]
    keep: bool,
    /// Use this NATS server instead of starting one.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Credentials file for that server.
    #[arg(long, value_name = "FILE", requires = "server")]
    creds: Option<PathBuf>,
    #[command(flatten)]
    tls: connect::TlsArgs,
    /// Name of the run; made up where absent.
    #[arg(long)]
    name: Option<RunId>,
    /// Write the JSON report to this file; - is the standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    data: DataOverrides,
    #[command(flatten)]
    run: RunOverrides,
    #[command(flatten)]
    simulate: SimulationOverrides,
    #[command(flatten)]
    places: Places,
}

impl Args {
    fn typed_config(&self) -> Result<Config> {
        let mut document = Document::read_or_empty(self.config.as_deref())?;
        if let Some(folder) = &self.relative_to {
            document = document.in_folder(folder);
        }
        self.data.apply(&mut document)?;
        self.run.apply(&mut document, self.data.seed())?;
        self.simulate.apply(&mut document)?;
        simulated(document, self.places.assets().as_deref())
    }

    /// The broker of the user, where one is given.
    fn broker(&self) -> Option<BusConfig> {
        let (creds, tls) = (self.creds.clone(), self.tls.clone().into());
        self.server.clone().map(|server| BusConfig { server, creds, tls, ..connect::named() })
    }

    fn sink(&self) -> Sink {
        match &self.json {
            Some(path) if path.as_os_str() == "-" => Sink::Stderr,
            _ => Sink::Stdout,
        }
    }
}

/// What a simulation makes of a document.
pub fn simulated(document: Document, assets: Option<&Path>) -> Result<Config> {
    let mut config = document.config(assets)?;
    let (cohort, clients) = (config.run.cohort, config.data.clients);
    if cohort > clients {
        bail!(
            "the cohort of {cohort} is larger than the {clients} clients: lower run.cohort (--cohort) or raise \
             data.clients (--clients)"
        );
    }
    let (run, ranks) = (&config.run, &config.simulate.lora_ranks);
    if ranks.contains(&0) {
        bail!("simulate.lora_ranks (--lora-ranks) must be at least 1");
    }
    if !ranks.is_empty() && !run.mixes_ranks() {
        bail!(
            "simulate.lora_ranks (--lora-ranks) is for run.aggregation.kind = \"lora_product\" (--aggregation lora-product), \
             without dp_sgd, local tensors and error feedback"
        );
    }
    if let (Source::Build(build), AggregationSpec::LoraExact) = (&config.model.source, run.aggregation)
        && !build.method.has_residuals()
    {
        bail!(
            "run.aggregation.kind = \"lora_exact\" (--aggregation lora-exact) needs a model with residuals: set \
             model.method = {{ kind = \"lora\", residual = true }} (--method lora --residual)"
        );
    }
    if run.is_personal() && run.evaluation.every > 0 && config.data.client_holdout.is_none() {
        bail!(
            "clients evaluate their own models in this run, on examples that they hold back: set \
             data.client_holdout (--client-holdout 0.2), or run.evaluation.every to 0"
        );
    }
    if let StrategySpec::Scaffold { population, .. } = &mut config.run.strategy {
        population.get_or_insert(clients);
    }
    // All clients are there before the run is submitted, so that a cohort depends on the seed alone; from then on
    // a round may start without those that left.
    if let Some(privacy) = &mut config.run.privacy {
        // All of them are here, and all may be sampled.
        privacy.population.get_or_insert(config.data.clients);
    }
    config.run.min_clients.get_or_insert(config.run.quorum());
    Ok(config)
}

/// Runs the simulation to its end and reports.
pub fn run(args: Args) -> Result<()> {
    let config = args.typed_config()?;
    // What the workers would stumble over is better said before anything is started.
    drop(Federation::load(&config.data)?);
    let plan = Plan::new(&config);
    let fleet = Fleet::locate(&args.places, args.server.is_none())?;
    let folder = model::prepare(&config.model, &args.places, args.sink())?;
    let store = Store::open(args.store.as_deref())?;
    let simulated = connect::block_on(Box::pin(simulate(&args, &config, &plan, fleet, folder, &store)));
    let (view, processes) = match simulated {
        Ok(simulated) => simulated,
        Err(error) => {
            let kept = !error.is::<Interrupted>() || args.keep;
            return Err(store.close(kept, error));
        }
    };
    let config = serde_json::to_value(&config).context("the configuration cannot be reported")?;
    let ended = crate::commands::run::check(&view.record);
    let report = Report::of_processes(view, config, processes);
    if let Some(path) = &args.json {
        report.write(path, Format::Json)?;
    }
    if let Some(path) = &args.html {
        report.write(path, Format::Html)?;
    }
    if let Err(error) = ended {
        return Err(store.close(true, error));
    }
    let summary = report.summary();
    match args.sink() {
        Sink::Stdout => output::print(summary)?,
        Sink::Stderr => output::remark(summary),
    }
    store.finish(args.keep)
}

/// Everything that needs the children; they are stopped before it returns.
async fn simulate(
    args: &Args,
    config: &Config,
    plan: &Plan,
    fleet: Fleet,
    folder: Option<PathBuf>,
    store: &Store,
) -> Result<(RunView, Processes)> {
    let mut view = View::new(config.run.rounds, args.sink());
    let versions = fleet.versions().await;
    let (mut supervisor, incidents) = supervisor::Supervisor::new(store.folder())?;
    let simulation = outcome::Simulation {
        broker: args.broker(),
        name: args.name.clone(),
        config,
        plan,
        fleet: &fleet,
        folder: folder.as_deref(),
        store,
    };
    let outcome = tokio::select! {
        outcome = Box::pin(simulation.run(&mut supervisor, incidents, &mut view)) => outcome,
        () = interrupted() => Err(Interrupted.into()),
    };
    view.finish();
    let peak_rss_bytes = supervisor.stop().await;
    let (view, adapter_bytes) = outcome?;
    let manifest = folder.and_then(|folder| ArtifactFolder::open(folder).ok());
    let method = manifest.as_ref().map(|folder| folder.manifest().method.to_string());
    let backbone_values = manifest.map(|folder| folder.manifest().backbone.values);
    Ok((view, Processes { peak_rss_bytes, versions, method, adapter_bytes, backbone_values }))
}

/// Ctrl-C, or a polite request to end.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
