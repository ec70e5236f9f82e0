//! Measurements that need more than one process. `cargo xtask bench` builds what they need and runs them.
//!
//! Every figure is printed beside a reference that was measured in the same run, on the same broker and disk: what
//! counts is the ratio, which says more on another machine than seconds do.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool")]

mod clients;
mod figure;
mod reference;
mod rounds;
mod world;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::rounds::Size;

/// Whole rounds of lightweight clients, beside raw publishing of the same bytes.
///
/// The clients train nothing: they speak the real protocol to a real nats-server and a real fedpeft-aggregator, and
/// answer each task at once with an update of the right size.
#[derive(Debug, Parser)]
#[command(name = "fedpeft-bench", version)]
struct Options {
    /// Clients, one row for each number; rounds sample up to 2048 of them.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000], value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Vec<u32>,
    /// Sizes of updates: those of `bias` and of LoRA (rank 8, query and value) on a ViT-S with ten classes.
    #[arg(long, value_delimiter = ',', default_values = ["bias", "lora"])]
    sizes: Vec<Size>,
    /// Rounds of each row; the first is not counted.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=100))]
    rounds: u32,
    /// File for all figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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
    let mut rows = Vec::new();
    println!("{}", rounds::Row::HEAD);
    for size in &options.sizes {
        for clients in &options.clients {
            let row = Box::pin(rounds::measure(*size, *clients, options.rounds)).await?;
            println!("{row}");
            rows.push(row);
        }
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "rounds": rows }))?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
