//! The fedpeft command line: thin commands over the libraries, one file per group in [`commands`].

mod commands;
mod config;
mod connect;
mod follow;
mod output;
mod progress;
mod records;
mod report;
mod simulate;
mod verify;
mod view;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use output::{Interrupted, one_line};

/// Federated parameter-efficient fine-tuning of frozen backbones.
#[derive(Debug, Parser)]
#[command(name = "fedpeft", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  fedpeft artifacts build --model vit.onnx --output last_hidden_state --input-size 56 --classes 10 --method bias -o vit-bias
  fedpeft artifacts inspect vit-bias
  fedpeft models push vit-bias --name vit-bias
  fedpeft data partition --clients 10 --alpha 0.1
  fedpeft simulate --config run.toml
  fedpeft experiment experiments/paper-methods.toml --quick
  fedpeft run submit run.toml --watch
  fedpeft report trial-7 -o report.html
  fedpeft export --run trial-7 -o exported
  fedpeft privacy noise --clients 64 --cohort 8 --rounds 50 --epsilon 5 --delta 1e-3
  fedpeft auth init && fedpeft auth enroll hospital-a
  fedpeft doctor
  fedpeft completions bash > /etc/bash_completion.d/fedpeft";

#[derive(Debug, Subcommand)]
enum Command {
    /// Build and inspect training artifacts.
    #[command(subcommand)]
    Artifacts(commands::artifacts::Command),
    /// Show how data is dealt out to clients.
    #[command(subcommand)]
    Data(commands::data::Command),
    /// Publish, list and fetch artifacts.
    #[command(subcommand)]
    Models(commands::models::Command),
    /// Submit and follow runs.
    #[command(subcommand)]
    Run(commands::run::Command),
    /// Report what happened in a run: a page with plots, JSON or CSV.
    Report(commands::report::Args),
    /// Write what a run trained as an ONNX model, safetensors or an HF peft folder.
    Export(commands::export::Args),
    /// Compute what differential privacy costs.
    #[command(subcommand)]
    Privacy(commands::privacy::Command),
    /// Run a whole federation on this machine.
    Simulate(Box<simulate::Args>),
    /// Run a grid of simulations and report means over seeds, with plots.
    Experiment(Box<commands::experiment::Args>),
    /// Decide who may do what on the broker: keys, credentials, revocation.
    #[command(subcommand)]
    Auth(commands::auth::Command),
    /// Check what a run needs: programs, library, device, disk, broker, permissions, services, clients.
    Doctor(commands::doctor::Args),
    /// Write manual pages.
    Man(commands::man::Args),
    /// Print a completion script for a shell.
    Completions(commands::completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Artifacts(command) => commands::artifacts::run(command),
        Command::Data(command) => commands::data::run(command),
        Command::Models(command) => commands::models::run(command),
        Command::Run(command) => commands::run::run(command),
        Command::Report(args) => commands::report::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Privacy(command) => commands::privacy::run(command),
        Command::Simulate(args) => simulate::run(*args),
        Command::Experiment(args) => commands::experiment::run(&args),
        Command::Auth(command) => commands::auth::run(command),
        Command::Doctor(args) => commands::doctor::run(args),
        Command::Man(args) => commands::man::run::<Cli>(&args),
        Command::Completions(args) => commands::completions::run::<Cli>(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe went away (`fedpeft ... | head`): nobody is left to tell.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if error.is::<Interrupted>() { ExitCode::from(130) } else { ExitCode::FAILURE };
            output::remark(format!("error: {}", one_line(&error)));
            code
        }
    }
}
