//! `cargo xtask test`: what CI runs.

use std::{num::NonZero, process::Command, thread};

use anyhow::{Context as _, Result};
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

/// Clippy in the compiler's place for the crates of the workspace, as `cargo clippy` puts it there, and warnings as errors in the
/// form in which it passes them on. `cargo clippy` itself would check all dependencies a second time, for four minutes.
const LINTS: [(&str, &str); 2] =
    [("RUSTC_WORKSPACE_WRAPPER", "clippy-driver"), ("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings")];

/// Everything uses the `dev` profile and the same compiler, so that nothing is compiled twice.
pub fn test(options: &Options) -> Result<()> {
    let assets = assets::fetch()?;
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    manifests()?;
    let linted = |arguments: &[&str]| {
        let mut command = cargo(arguments);
        command.envs(LINTS);
        command
    };
    answers(Command::new("clippy-driver").arg("--version"))
        .then_some(())
        .context("clippy is missing: rustup component add clippy")?;
    run(&mut linted(&["build", "--workspace", "--all-targets"]))?;

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
    run(linted(&arguments).envs(assets.environment()))?;
    run(linted(&["test", "--workspace", "--doc"]).envs(assets.environment()))
}
