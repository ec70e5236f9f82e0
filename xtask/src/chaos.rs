//! `cargo xtask chaos`: faults against a federation of real processes, and a table of what they cost.

use std::path::{self, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::assets;
use crate::process::{cargo, run};

#[derive(Debug, Args)]
pub struct Options {
    /// Seed of the schedule: which faults, when, and against whom.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Faults to strike with; up to 18, each is of another kind.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    faults: u32,
    /// File for the whole report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Builds the programs and carries the trial out. It fails when a single byte differs from the run without faults.
pub fn chaos(options: &Options) -> Result<()> {
    let assets = assets::fetch()?;
    run(&mut cargo(&["build", "--workspace", "--bins"]))?;
    let mut test = cargo(&["test", "--quiet", "--workspace", "--test", "chaos", "--"]);
    test.args(["--ignored", "--exact", "many_faults_change_nothing", "--nocapture"]);
    test.envs(assets.environment());
    test.env("FEDPEFT_CHAOS_SEED", options.seed.to_string());
    test.env("FEDPEFT_CHAOS_FAULTS", options.faults.to_string());
    if let Some(json) = &options.json {
        test.env("FEDPEFT_CHAOS_JSON", path::absolute(json)?);
    }
    run(&mut test)
}
