//! A trial as a process: what it keeps busy, and how it is started and read.

use std::{num::NonZero, path::PathBuf, thread};

use fedpeft_experiment::{Launch, Place, Shape, Trial};
use tokio::process::Command;

use crate::{config::Config, simulate::programs::Places};

/// What a configuration means for the time it takes.
pub fn shape(config: &Config) -> Shape {
    let Config { run, data, simulate, .. } = config;
    let all = u32::try_from(cores()).unwrap_or(u32::MAX);
    let own =
        simulate.workers.zip(simulate.threads).map(|(workers, threads)| workers.saturating_mul(threads));
    Shape {
        rounds: run.rounds,
        sampled: run.cohort,
        local_epochs: run.training.local_epochs,
        clients: data.clients,
        samples_per_client: data.samples_per_client,
        evaluations: run.rounds.checked_div(run.evaluation.every).unwrap_or(0),
        eval_examples: data.eval_examples,
        cores: own.unwrap_or(all).min(all),
    }
}

/// Cores that may be used.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Runs a trial with `fedpeft simulate`.
pub struct Simulate<'a> {
    /// This program.
    pub program: PathBuf,
    /// Where relative paths of trials start.
    pub base: PathBuf,
    /// Where programs and libraries are.
    pub places: &'a Places,
}

impl Launch for Simulate<'_> {
    fn command(&self, trial: &Trial, place: &Place) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["simulate", "--name", &format!("trial-{}", trial.id), "--relative-to"]).arg(&self.base);
        for (flag, path) in
            [("--config", place.config()), ("--store", place.store()), ("--json", place.report())]
        {
            command.arg(flag).arg(path);
        }
        command.args(self.places.arguments());
        command
    }

    /// A row of the table: `3  4/4  0.5000 ...`.
    fn round(&self, line: &str) -> Option<u32> {
        let mut cells = line.split_whitespace();
        let round = cells.next()?.parse().ok()?;
        cells.next()?.contains('/').then_some(round)
    }
}
