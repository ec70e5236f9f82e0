//! `cargo xtask bench`: what rounds take, beside what the broker alone takes for the same bytes.

use std::path::{self, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::assets;
use crate::process::{cargo, run};

#[derive(Debug, Args)]
pub struct Options {
    /// Clients, one row for each number.
    #[arg(long, value_name = "COUNT,...", default_value = "10,100,1000,10000")]
    clients: String,
    /// Sizes of updates: bias, lora.
    #[arg(long, value_name = "SIZE,...", default_value = "bias,lora")]
    sizes: String,
    /// Rounds of each row; the first is not counted.
    #[arg(long, default_value_t = 6)]
    rounds: u32,
    /// File for all figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure a build without optimizations: to try the bench, not to believe it.
    #[arg(long)]
    debug: bool,
}

/// Builds the programs and measures.
pub fn bench(options: &Options) -> Result<()> {
    let assets = assets::fetch()?;
    let profile: &[&str] = if options.debug { &[] } else { &["--release"] };
    let build = ["build", "-p", "fedpeft-aggregator", "-p", "fedpeft-bench", "--bins"];
    run(&mut cargo(&[&build[..], profile].concat()))?;
    let mut bench = cargo(&[&["run", "--quiet", "-p", "fedpeft-bench"][..], profile, &["--"]].concat());
    bench.args(["--clients", &options.clients, "--sizes", &options.sizes]);
    bench.args(["--rounds", &options.rounds.to_string()]);
    bench.envs(assets.environment());
    if let Some(json) = &options.json {
        bench.arg("--json").arg(path::absolute(json)?);
    }
    run(&mut bench)
}
