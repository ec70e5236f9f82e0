//! `cargo xtask demo`: the federated run of the README, on this machine.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::assets;
use crate::process::{become_program, cargo, root, run};

/// What is learned.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Task {
    /// DINOv2 learns Fashion-MNIST.
    #[default]
    Image,
    /// MiniLM learns the topics of BBC News.
    Text,
}

impl Task {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Text => "text",
        }
    }

    /// The run; options change it.
    pub fn config(self) -> &'static str {
        match self {
            Self::Image => "xtask/demo.toml",
            Self::Text => "xtask/text.toml",
        }
    }
}

#[derive(Debug, Args)]
pub struct Options {
    /// What is learned.
    #[arg(long, value_enum, default_value_t)]
    task: Task,
    /// Clients that hold data.
    #[arg(long)]
    clients: Option<String>,
    /// Clients sampled for each round.
    #[arg(long)]
    cohort: Option<String>,
    /// Rounds.
    #[arg(long)]
    rounds: Option<String>,
    /// Passes over a client's examples in a round.
    #[arg(long)]
    local_epochs: Option<String>,
    /// What is trained: head, bias, lora, prompt ..; see `fedpeft simulate --help`.
    #[arg(long)]
    method: Option<String>,
    /// Dirichlet concentration: the smaller, the fewer classes a client sees.
    #[arg(long, allow_negative_numbers = true)]
    alpha: Option<String>,
    /// Training examples of each client.
    #[arg(long)]
    samples: Option<String>,
    /// Held-out examples.
    #[arg(long)]
    eval: Option<String>,
    /// sgd or adamw.
    #[arg(long)]
    optimizer: Option<String>,
    /// Learning rate.
    #[arg(long, allow_negative_numbers = true)]
    lr: Option<String>,
    /// Seed of the partition, the cohorts and the clients' shuffling.
    #[arg(long)]
    seed: Option<String>,
    /// Side of the model's input in pixels, a multiple of 14.
    #[arg(long)]
    input_size: Option<String>,
    /// Tokens of the model's input.
    #[arg(long)]
    max_length: Option<String>,
    /// Write the report to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Further options of `fedpeft simulate`.
    #[arg(last = true)]
    simulate: Vec<String>,
}

impl Options {
    /// As options of `fedpeft simulate`, which checks them.
    fn arguments(&self) -> Result<Vec<String>> {
        let json = self.json.as_ref().map(std::path::absolute).transpose()?;
        let given = [
            ("--clients", &self.clients),
            ("--cohort", &self.cohort),
            ("--rounds", &self.rounds),
            ("--local-epochs", &self.local_epochs),
            ("--method", &self.method),
            ("--alpha", &self.alpha),
            ("--samples", &self.samples),
            ("--eval", &self.eval),
            ("--optimizer", &self.optimizer),
            ("--lr", &self.lr),
            ("--seed", &self.seed),
            ("--input-size", &self.input_size),
            ("--max-length", &self.max_length),
            ("--json", &json.map(|path| path.display().to_string())),
        ];
        // `--name=value`, so that a value such as -1 reaches the check that explains it.
        let pair = |(name, value): (&str, &Option<String>)| Some(format!("{name}={}", value.as_ref()?));
        Ok(given.into_iter().filter_map(pair).chain(self.simulate.iter().cloned()).collect())
    }
}

/// Fetches, builds and runs; returns only when the run cannot be started.
pub fn demo(options: &Options) -> Result<()> {
    let assets = assets::fetch()?;
    run(&mut cargo(&["build", "--release", "--bins"]))?;
    let mut simulate =
        cargo(&["run", "--quiet", "--release", "--package", "fedpeft-cli", "--bin", "fedpeft", "--"]);
    simulate
        .arg("simulate")
        .arg("--config")
        .arg(root().join(options.task.config()))
        .args(options.arguments()?);
    Err(become_program(simulate.envs(assets.environment())))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Demo {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn options_are_handed_on() {
        let demo = Demo::parse_from(["demo", "--alpha", "-1", "--method", "head", "--", "--threads", "2"]);
        let arguments = demo.options.arguments().unwrap();
        assert_eq!(demo.options.task.config(), "xtask/demo.toml");
        assert_eq!(arguments, ["--method=head", "--alpha=-1", "--threads", "2"]);
    }
}
