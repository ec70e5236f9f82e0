//! Real federations, `fedpeft simulate` around a broker of ours: DINOv2 ViT-S/14 at 56 pixels on Fashion-MNIST.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use fedpeft_protocol::{event::EventKind, round::RoundReport};
use fedpeft_testkit::locate_binary;
use serde::Deserialize;
use tokio::{process::Command, task::JoinHandle};

use crate::{
    artifacts::OUTPUT,
    figure::{Figure, Section, Spread},
    world::Broker,
};

const METHODS: [&str; 4] = ["head", "bias", "lora", "full"];
/// Held-out examples: rounds are counted without their evaluation.
const EVALUATED: u32 = 100;
const MIB: f64 = (1 << 20) as f64;
/// Events that are still on their way when the program has ended.
const LINGER: Duration = Duration::from_millis(300);

/// One run.
#[derive(Debug, Clone, Copy)]
struct Case {
    method: &'static str,
    workers: u32,
    clients: u32,
    /// Examples of each client.
    samples: u32,
    rounds: u32,
    /// Blocks of the backbone: all of them, or the first.
    blocks: u32,
}

/// Blocks of a ViT-S.
const BLOCKS: u32 = 12;

impl Case {
    /// The federation with which peers are compared.
    const fn peers(method: &'static str, quick: bool) -> Self {
        let (samples, rounds) = if quick { (20, 2) } else { (200, 3) };
        Self { method, workers: 2, clients: 10, samples, rounds, blocks: BLOCKS }
    }
}

/// What a run came to.
struct Ran {
    report: Report,
    /// From launch to the beginning of the first training, and to the end of the first round.
    first_step: Option<f64>,
    first_round: Option<f64>,
    broker_peak: f64,
    /// Values of the backbone that is trained.
    backbone_values: u64,
}

#[derive(Deserialize)]
struct Report {
    rounds: Vec<RoundReport>,
    totals: Totals,
}

#[derive(Deserialize)]
struct Totals {
    adapter_bytes: Option<u64>,
    peak_rss_bytes: BTreeMap<String, u64>,
}

impl Ran {
    /// Peak of all processes of this kind, in MiB: of each at its own time, so that they were never more together.
    fn peak(&self, kind: &str) -> f64 {
        let of_kind = self.report.totals.peak_rss_bytes.iter().filter(|(name, _)| name.starts_with(kind));
        of_kind.map(|(_, peak)| *peak as f64 / MIB).sum()
    }

    /// Seconds of a round outside of training and evaluation: what the workers need that has most to do is training.
    fn overhead(&self, round: &RoundReport, workers: u32) -> f64 {
        let clients = &round.clients;
        let bound = |worker: u32| clients.len() * worker as usize / workers.max(1) as usize;
        let share = |worker: u32| &clients[bound(worker)..bound(worker + 1)];
        let busy = (0..workers).map(|worker| share(worker).iter().map(|client| client.train_seconds).sum());
        round.seconds.total - round.seconds.evaluate - busy.fold(0.0, f64::max)
    }
}

/// Seconds, memory and bytes of ten clients with 200 images each, by method.
pub async fn runs(quick: bool, say: &dyn Fn(&str)) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for method in METHODS {
        let case = Case::peers(method, quick);
        say(&format!("run of {method}"));
        // Artifacts are built once and kept.
        simulate(Case { samples: 10, rounds: 1, ..case }).await?;
        let ran = simulate(case).await?;
        let figure = |what: &str| Figure::new(Section::Runs, method, what);
        let later = || ran.report.rounds.iter().skip(1);
        let seconds = Spread::of(later().map(|round| round.seconds.total).collect());
        let training: Vec<f64> =
            later().map(|round| round.seconds.total - ran.overhead(round, case.workers)).collect();
        figures.push(
            figure("round").is(seconds, "s").beside("training of the busier worker", Spread::of(training)),
        );
        let overhead = later().map(|round| ran.overhead(round, case.workers) * 1e3).collect();
        figures.push(figure("overhead of a round").is(Spread::of(overhead), "ms"));
        if let (Some(seconds), Some(first)) = (ran.first_round, ran.report.rounds.first()) {
            let training = first.seconds.total - ran.overhead(first, case.workers);
            let seconds = Spread::one(seconds - first.seconds.evaluate);
            let figure = figure("launch to first aggregated round").is(seconds, "s");
            figures.push(figure.beside("training of the busier worker", Spread::one(training)));
        }
        let all = ran.peak("") + ran.broker_peak;
        figures.push(figure("memory of all processes").is(Spread::one(all), "MiB"));
        for kind in ["worker", "aggregator", "registry", "exporter", "fedpeft"] {
            let peak = ran.peak(kind);
            if peak > 0.0 {
                figures.push(figure(&format!("memory: {kind}")).is(Spread::one(peak), "MiB"));
            }
        }
        figures.push(figure("memory: nats-server").is(Spread::one(ran.broker_peak), "MiB"));
        let up = later().flat_map(|round| &round.clients).map(|client| client.bytes_up as f64 / 1e3);
        let adapter = ran.report.totals.adapter_bytes.unwrap_or(0) as f64 / 1e3;
        let figure = figure("bytes up per client and round").is(Spread::of(up.collect()), "kB");
        figures.push(figure.beside("the adapter", Spread::one(adapter)));
    }
    Ok(figures)
}

/// Memory of one worker against clients, adapter and backbone, beside the backbone's file.
pub async fn memory(quick: bool, say: &dyn Fn(&str)) -> Result<Vec<Figure>> {
    let samples = if quick { 10 } else { 64 };
    let backbone = std::fs::metadata(fedpeft_testkit::assets().dinov2()?)?.len() as f64 / MIB;
    let backbone = Spread::one(backbone);
    let mut figures = Vec::new();
    for (method, clients) in [
        ("bias", 1),
        ("bias", 2),
        ("bias", 5),
        ("bias", 10),
        ("bias", 20),
        ("head", 10),
        ("lora", 10),
        ("full", 10),
    ] {
        say(&format!("memory of a worker with {clients} clients, {method}"));
        let ran = simulate(Case { method, workers: 1, clients, samples, rounds: 2, blocks: BLOCKS }).await?;
        let adapter = ran.report.totals.adapter_bytes.unwrap_or(0) as f64 / MIB;
        let clients = f64::from(clients);
        let line = |what: &str, x: f64| Figure::new(Section::Memory, method, what).at(x);
        let worker = Spread::one(ran.peak("worker"));
        figures.push(line("worker by clients", clients).is(worker, "MiB").beside("backbone file", backbone));
        if clients == 10.0 {
            for (what, peak) in [
                ("worker by adapter MiB", ran.peak("worker")),
                ("aggregator by adapter MiB", ran.peak("aggregator")),
                ("nats-server by adapter MiB", ran.broker_peak),
            ] {
                figures.push(line(what, adapter).is(Spread::one(peak), "MiB"));
            }
        }
    }
    for blocks in [3, 6, 9, BLOCKS] {
        say(&format!("memory of a worker with {blocks} blocks of the backbone"));
        let ran =
            simulate(Case { method: "bias", workers: 1, clients: 1, samples, rounds: 2, blocks }).await?;
        let backbone = ran.backbone_values as f64 * 4.0 / MIB;
        let figure = Figure::new(Section::Memory, "bias", "worker by backbone MiB").at(backbone);
        let figure = figure.is(Spread::one(ran.peak("worker")), "MiB");
        figures.push(figure.beside("backbone", Spread::one(backbone)));
    }
    Ok(figures)
}

/// From launch to the first training step, and to the first aggregated round, with a warm cache.
pub async fn startup(quick: bool) -> Result<Vec<Figure>> {
    let case = Case { method: "bias", workers: 2, clients: 10, samples: 10, rounds: 1, blocks: BLOCKS };
    simulate(case).await?;
    let (mut step, mut round) = (Vec::new(), Vec::new());
    for _ in 0..if quick { 2 } else { 5 } {
        let ran = simulate(case).await?;
        step.extend(ran.first_step);
        let first = ran.report.rounds.first().context("there is no round")?;
        // What is told of it is told after its evaluation.
        let training = first.seconds.total - ran.overhead(first, case.workers);
        round.extend(ran.first_round.map(|seconds| seconds - training));
    }
    let figure = |what| Figure::new(Section::Startup, "fedpeft simulate", what);
    Ok(vec![
        figure("launch to first training step").is(Spread::of(step), "s"),
        figure("launch to first aggregated round, without training").is(Spread::of(round), "s"),
    ])
}

/// Sizes of the programs.
pub fn programs() -> Result<Vec<Figure>> {
    let names = ["fedpeft", "fedpeft-aggregator", "fedpeft-worker", "fedpeft-registry", "fedpeft-exporter"];
    let sizes = names.into_iter().map(|name| {
        let size = std::fs::metadata(locate_binary(name)?)?.len() as f64 / 1e6;
        Ok(Figure::new(Section::Programs, name, "file").is(Spread::one(size), "MB"))
    });
    sizes.collect()
}

async fn simulate(case: Case) -> Result<Ran> {
    let broker = Broker::start().await?;
    let folder = tempfile::tempdir()?;
    let (json, log) = (folder.path().join("report.json"), folder.path().join("log"));
    let began = Instant::now();
    let watching = watch(&broker, began).await?;
    let Case { method, workers, clients, samples, rounds, blocks } = case;
    let numbers = [
        ("--workers", workers),
        ("--threads", 2 / workers.clamp(1, 2)),
        ("--clients", clients),
        ("--cohort", clients),
        ("--samples", samples),
        ("--rounds", rounds),
        ("--batch-size", 32),
        ("--eval", EVALUATED),
    ];
    let mut command = Command::new(locate_binary("fedpeft")?);
    command
        .args(["simulate", "--device", "cpu", "--schedule", "constant", "--lr", "1e-3", "--method", method])
        .args(["--server", &broker.url(), "--config"])
        .arg(config(blocks, folder.path())?)
        .args(numbers.into_iter().flat_map(|(flag, number)| [flag.to_owned(), number.to_string()]))
        .arg("--json")
        .arg(&json)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log)?)
        .kill_on_drop(true);
    let status = command.status().await.context("cannot start fedpeft")?;
    if !status.success() {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        bail!("fedpeft simulate failed ({status}): {}", said.lines().last().unwrap_or_default());
    }
    tokio::time::sleep(LINGER).await;
    let report =
        serde_json::from_slice(&std::fs::read(&json)?).context("fedpeft simulate wrote another report")?;
    let broker_peak = broker.peak() as f64 / MIB;
    watching.1.abort();
    let seen = *watching.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Seen { first_step, first_round, backbone_values } = seen;
    Ok(Ran { report, first_step, first_round, broker_peak, backbone_values })
}

/// What events told.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    first_step: Option<f64>,
    first_round: Option<f64>,
    backbone_values: u64,
}

/// Notes when the first training began, when the first round was closed, and what is trained.
async fn watch(broker: &Broker, began: Instant) -> Result<(Arc<Mutex<Seen>>, JoinHandle<()>)> {
    let mut events = broker.bus.events(None, true).await?;
    let all = Arc::<Mutex<Seen>>::default();
    let seen = all.clone();
    let watching = tokio::spawn(async move {
        while let Ok(event) = events.next().await {
            let now = began.elapsed().as_secs_f64();
            let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match event.kind {
                EventKind::UpdateAccepted { seconds, .. } => {
                    let step = now - seconds;
                    seen.first_step = Some(seen.first_step.map_or(step, |first| first.min(step)));
                }
                EventKind::RoundClosed { .. } => {
                    seen.first_round.get_or_insert(now);
                }
                EventKind::Status { backbone_values, .. } => {
                    seen.backbone_values = seen.backbone_values.max(backbone_values);
                }
                _ => {}
            }
        }
    });
    Ok((all, watching))
}

/// The run of the demo, which options change; with fewer blocks of the backbone, a copy in `folder` that ends after them.
fn config(blocks: u32, folder: &Path) -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let demo = here.parent().unwrap_or(here).join("xtask/demo.toml");
    if blocks == BLOCKS {
        return Ok(demo);
    }
    let last = format!("/backbone/encoder/layer.{}/Add_1_output_0", blocks - 1);
    let text = std::fs::read_to_string(&demo)?;
    let cut = text.replace(OUTPUT, &last);
    if cut == text {
        bail!("{} does not end at {OUTPUT}", demo.display());
    }
    let path = folder.join("run.toml");
    std::fs::write(&path, cut)?;
    Ok(path)
}
