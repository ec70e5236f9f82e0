//! `cargo xtask test`: what CI runs.

use std::{num::NonZero, thread};

use anyhow::Result;
use clap::Args;

use crate::assets;
use crate::manifests::manifests;
use crate::process::{answers, cargo, run};

/// The package of the end-to-end tests.
const END_TO_END: &str = "fedpeft-tests";

#[derive(Debug, Args)]
pub struct Options {
    /// Skip the end-to-end tests, which take minutes.
    #[arg(long)]
    quick: bool,
}

/// Everything uses the `dev` profile, so that nothing is compiled twice.
pub fn test(options: &Options) -> Result<()> {
    let assets = assets::fetch()?;
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    manifests()?;
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    run(&mut cargo(&["build", "--workspace", "--bins"]))?;

    // The profile says why there are more threads than cores.
    let threads = (2 * thread::available_parallelism().map_or(1, NonZero::get)).to_string();
    let mut arguments = match answers(&mut cargo(&["nextest", "--version"])) {
        true => vec!["nextest", "run", "--profile", "ci", "--test-threads", &threads],
        false => vec!["test", "--lib", "--bins", "--tests"],
    };
    arguments.push("--workspace");
    if options.quick {
        arguments.extend(["--exclude", END_TO_END]);
    }
    run(cargo(&arguments).envs(assets.environment()))?;
    run(cargo(&["test", "--workspace", "--doc"]).envs(assets.environment()))
}
