//! `cargo xtask bench`: what everything takes, beside references of the same run.

use std::{
    io::{BufRead as _, BufReader},
    path::{self, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::assets;
use crate::process::{cargo, run};

/// Programs that are measured.
const PROGRAMS: [&str; 6] = [
    "fedpeft-cli",
    "fedpeft-aggregator",
    "fedpeft-worker",
    "fedpeft-registry",
    "fedpeft-exporter",
    "fedpeft-bench",
];
/// Benches whose figures are collected, and their packages.
const BENCHES: [(&str, &str); 3] =
    [("fedpeft-codec", "codec"), ("fedpeft-strategy", "accumulator"), ("fedpeft-runtime", "train_step")];

#[derive(Debug, Args)]
pub struct Options {
    /// Measure these alone: train, artifacts, codec, accumulator, broker, rounds, runs, memory, startup, programs.
    #[arg(long, value_name = "SECTION,...")]
    only: Option<String>,
    /// Fewer and smaller measurements: to try the bench.
    #[arg(long)]
    quick: bool,
    /// Clients of whole rounds [default: 10,100,1000,10000; with --quick 10,100,1000].
    #[arg(long, value_name = "COUNT,...")]
    clients: Option<String>,
    /// Sizes of updates in whole rounds: bias, lora [default: both].
    #[arg(long, value_name = "SIZE,...")]
    sizes: Option<String>,
    /// File for all figures as JSON; of one that is there, sections that are not measured now are kept.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure nothing, take the figures of this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "quick", "clients", "sizes", "json"])]
    from: Option<PathBuf>,
    /// Write docs/performance.md and its plots.
    #[arg(long)]
    write: bool,
    /// Measure a build without optimizations: to try the bench, not to believe it.
    #[arg(long)]
    debug: bool,
}

/// Builds the programs and measures.
pub fn bench(options: &Options) -> Result<()> {
    let built = build(options)?;
    let program = |name: &str| {
        let found = built.iter().find(|built| built.target.name == name);
        found.and_then(|built| built.executable.clone()).with_context(|| format!("cargo built no {name}"))
    };
    let mut bench = std::process::Command::new(program("fedpeft-bench")?);
    let given = [("--only", &options.only), ("--clients", &options.clients), ("--sizes", &options.sizes)];
    for (flag, value) in given.into_iter().filter_map(|(flag, value)| Some((flag, value.as_ref()?))) {
        bench.arg(flag).arg(value);
    }
    for (flag, path) in [("--json", &options.json), ("--from", &options.from)] {
        if let Some(path) = path {
            bench.arg(flag).arg(path::absolute(path)?);
        }
    }
    for (flag, given) in [("--quick", options.quick), ("--write", options.write)] {
        bench.args(given.then_some(flag));
    }
    if options.from.is_none() {
        bench.envs(assets::fetch()?.environment());
        for (_, name) in BENCHES {
            bench.arg("--bench").arg(format!("{name}={}", program(name)?.display()));
        }
    }
    run(&mut bench)
}

/// What cargo says of something that it has built.
#[derive(Debug, Deserialize)]
struct Built {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// Builds all in one go, so that what they share is built once.
fn build(options: &Options) -> Result<Vec<Built>> {
    let mut build = vec!["build", "--message-format=json-render-diagnostics", "--bins"];
    if options.from.is_some() {
        // It draws what others have measured.
        build.extend(["-p", "fedpeft-bench"]);
    } else {
        build.extend(PROGRAMS.iter().flat_map(|package| ["-p", package]));
        build.extend(BENCHES.iter().flat_map(|(package, bench)| ["-p", package, "--bench", bench]));
        build.extend((!options.debug).then_some("--release"));
    }
    let mut command = cargo(&build);
    eprintln!("> cargo {}", build.join(" "));
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut built = Vec::new();
    for line in BufReader::new(output).lines() {
        // Other messages are about other things.
        built.extend(serde_json::from_str::<Built>(&line?).ok().filter(|built| built.executable.is_some()));
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo build failed ({status})");
    }
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_built_is_understood() {
        let line = r#"{"reason":"compiler-artifact","target":{"kind":["bench"],"name":"codec"},"executable":"/t/codec-1"}"#;
        let built: Built = serde_json::from_str(line).unwrap();
        assert_eq!((built.target.name.as_str(), built.executable), ("codec", Some("/t/codec-1".into())));
        assert!(serde_json::from_str::<Built>(r#"{"reason":"build-finished","success":true}"#).is_err());
    }
}
