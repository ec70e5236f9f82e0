//! Measurements, each beside a reference. `cargo xtask bench` builds what they need and runs them.
//!
//! Every figure is put beside a reference that was measured in the same run, on the same machine, broker and disk: what
//! counts is the ratio, which says more on another machine than seconds do.
//!
//! | file | what |
//! | --- | --- |
//! | `collect` | figures of the benches of single crates |
//! | `artifacts`, `broker` | what is timed here |
//! | `rounds`, `clients`, `reference`, `world` | whole rounds of clients that train nothing |
//! | `simulated` | real federations: seconds, memory, start-up |
//! | `page`, `targets` | `docs/performance.md` |

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool")]

mod artifacts;
mod broker;
mod clients;
mod collect;
mod figure;
mod machine;
mod page;
mod reference;
mod rounds;
mod simulated;
mod targets;
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum as _};

use crate::{
    collect::Benches,
    figure::{Figure, Report, Section},
    rounds::Size,
};

/// Measures FedPEFT, every figure beside a reference of the same run.
#[derive(Debug, Parser)]
#[command(name = "fedpeft-bench", version)]
struct Options {
    /// Measure these alone.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SECTION,...")]
    only: Vec<Section>,
    /// Fewer and smaller measurements: to try the bench.
    #[arg(long)]
    quick: bool,
    /// Clients of whole rounds [default: 10,100,1000,10000; with --quick 10,100,1000].
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Vec<u32>,
    /// Sizes of updates: those of `bias` and of LoRA (rank 8, query and value) on a ViT-S with ten classes.
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', default_values = ["bias", "lora"])]
    sizes: Vec<Size>,
    /// File for all figures as JSON; of one that is there, sections that are not measured now are kept.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure nothing, take the figures of this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "quick", "clients", "json"])]
    from: Option<PathBuf>,
    /// Write docs/performance.md and its plots.
    #[arg(long)]
    write: bool,
    /// Benches of single crates.
    #[arg(long = "bench", value_name = "NAME=PROGRAM", value_parser = program, hide = true)]
    benches: Vec<(String, PathBuf)>,
}

fn program(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("NAME=PROGRAM")?;
    Ok((name.into(), path.into()))
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(options: &Options) -> Result<()> {
    let report = match &options.from {
        Some(path) => read(path)?,
        None => Box::pin(measure(options)).await?,
    };
    if options.write {
        page::write(&report)?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Report> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} holds no figures", path.display()))
}

async fn measure(options: &Options) -> Result<Report> {
    let mut report = Report::default();
    if let Some(path) = options.json.as_ref().filter(|path| path.exists()) {
        report = read(path)?;
    }
    (report.machine, report.build, report.day) = (machine::words(), machine::build(), machine::day());
    report.quick = options.quick;
    let (started, mut failed) = (Instant::now(), Vec::new());
    for section in Section::value_variants() {
        if !options.only.is_empty() && !options.only.contains(section) {
            continue;
        }
        let name = section.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let began = Instant::now();
        eprintln!("{name} ...");
        let figures = match Box::pin(of(*section, options)).await {
            Ok(figures) => figures,
            // The others are measured all the same.
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(name);
                continue;
            }
        };
        eprintln!("{name}: {:.0} s", began.elapsed().as_secs_f64());
        figures.iter().for_each(|figure| println!("{}", line(figure)));
        report.figures.retain(|figure| figure.section != *section);
        report.figures.extend(figures);
        report.seconds = started.elapsed().as_secs_f64();
        // What is measured is safe.
        if let Some(path) = &options.json {
            let text = serde_json::to_string_pretty(&report)?;
            fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    report.figures.sort_by_key(|figure| figure.section);
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(report)
}

async fn of(section: Section, options: &Options) -> Result<Vec<Figure>> {
    let (benches, quick): (Benches, bool) = (options.benches.iter().cloned().collect(), options.quick);
    let say = |what: &str| eprintln!("  {what}");
    match section {
        Section::Train => collect::train(&benches, quick),
        Section::Artifacts => artifacts::building(),
        Section::Codec => collect::codec(&benches, quick),
        Section::Accumulator => collect::accumulator(&benches),
        Section::Broker => broker::trips(quick).await,
        Section::Rounds => {
            let usual: &[u32] = if quick { &[10, 100, 1000] } else { &[10, 100, 1000, 10_000] };
            let clients = if options.clients.is_empty() { usual } else { &options.clients };
            let mut figures = Vec::new();
            for size in &options.sizes {
                for clients in clients {
                    say(&format!("rounds of {clients} clients, {size}"));
                    figures.extend(Box::pin(rounds::measure(*size, *clients, quick)).await?);
                }
            }
            Ok(figures)
        }
        Section::Runs => Box::pin(simulated::runs(quick, &say)).await,
        Section::Memory => Box::pin(simulated::memory(quick, &say)).await,
        Section::Startup => Box::pin(simulated::startup(quick)).await,
        Section::Programs => simulated::programs(),
    }
}

/// A figure for the terminal.
fn line(figure: &Figure) -> String {
    let Figure { name, what, x, unit, value, reference, ratio, .. } = figure;
    let at = x.map(|x| format!(" {x}")).unwrap_or_default();
    let beside = match (reference, ratio) {
        (Some(reference), Some(ratio)) => {
            format!("  {ratio} x {} ({} {unit})", reference.name, reference.value)
        }
        _ => String::new(),
    };
    format!("{:<52}{value} {unit}{beside}", format!("{name}, {what}{at}"))
}
