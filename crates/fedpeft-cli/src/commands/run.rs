//! `fedpeft run`: runs on services that are already there.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use clap::Subcommand;
use fedpeft_protocol::{
    RunId,
    api::{CreateRun, RunRequest},
    run::{RunRecord, RunStatus, RunView},
};

use crate::{
    config::Document,
    connect::{Connection, block_on},
    output::{self, Output},
    records,
    verify::{self, Verified},
    view::{self, Sink},
    watch,
};

/// What to do with runs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Submit a run. Its model must have been pushed with `fedpeft models push`.
    #[command(after_help = "\
Examples:
  fedpeft run submit run.toml
  fedpeft run submit run.toml --name trial-7 --watch --server nats://broker:4222")]
    Submit {
        /// File with the sections [run] and [model].
        #[arg(value_name = "FILE", required_unless_present = "config")]
        file: Option<PathBuf>,
        /// The same, as a flag.
        #[arg(long, value_name = "FILE", conflicts_with = "file")]
        config: Option<PathBuf>,
        /// Name of the run; made up where absent.
        #[arg(long)]
        name: Option<RunId>,
        /// Show the run until it ends.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// List all runs, newest first.
    #[command(after_help = "Example:\n  fedpeft run list --server nats://broker:4222")]
    List {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Show a run and its rounds.
    #[command(after_help = "Example:\n  fedpeft run get trial-7")]
    Get(Named),
    /// Show a run as it happens.
    Watch(watch::Args),
    /// Stop a run. Its committed rounds stay.
    #[command(after_help = "Example:\n  fedpeft run cancel trial-7")]
    Cancel(Named),
    /// Go on with a run that failed or was cancelled.
    #[command(after_help = "Example:\n  fedpeft run resume trial-7")]
    Resume(Named),
    /// Check the ledger of a run: every update in it counts once, and nothing was changed since.
    #[command(after_help = "\
With `keep_updates = true` in run.toml every round is aggregated again as well.

Examples:
  fedpeft run verify trial-7
  fedpeft run verify trial-7 --json | jq .updates")]
    Verify(Named),
    /// Write the report of a run: `fedpeft report`.
    Report(super::report::Args),
}

/// Names a run.
#[derive(Debug, clap::Args)]
pub struct Named {
    /// Name of the run.
    run: RunId,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// Runs one of them.
pub fn run(command: Command) -> Result<()> {
    block_on(Box::pin(dispatch(command)))
}

async fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Submit { file, config, name, watch, connection, output } => {
            let path = file.or(config).unwrap_or_default();
            submit(&path, name, watch, connection, output).await
        }
        Command::List { connection, output } => {
            let runs = records::all(&connection.open().await?).await?;
            output.show(&runs, |runs| table(runs))
        }
        Command::Get(Named { run, connection, output }) => {
            let view = records::view(&connection.open().await?, &run).await?;
            output.show(&view, human)
        }
        Command::Watch(args) => watch::watch(args).await,
        Command::Cancel(named) => change("runs.cancel", named).await,
        Command::Resume(named) => change("runs.resume", named).await,
        Command::Verify(Named { run, connection, output }) => {
            let bus = connection.open().await?;
            let view = records::view(&bus, &run).await?;
            let verified = Box::pin(verify::verify(&bus, &view)).await?;
            output.show(&verified, Verified::human)
        }
        Command::Report(args) => super::report::report(args).await,
    }
}

async fn submit(
    path: &Path,
    run: Option<RunId>,
    watch_it: bool,
    connection: Connection,
    output: Output,
) -> Result<()> {
    let spec = Document::read(path)?.submission(fedpeft_data::asset_dir().as_deref())?;
    let bus = connection.open().await?;
    let record: RunRecord = bus.request("runs.create", &CreateRun { run, spec }).await?;
    output.show(&record, |record| format!("run {} is {}", record.run, record.status.word()))?;
    if watch_it {
        // The record went to the standard output; a program that reads it there wants no table behind it.
        let sink = if output.is_json() { Sink::Stderr } else { Sink::Stdout };
        watch::table(&bus, &record.run, sink).await?;
    }
    Ok(())
}

/// A run that did not complete is an error of the command that waited for it.
pub fn check(record: &RunRecord) -> Result<()> {
    match &record.status {
        RunStatus::Failed { reason } => bail!("run {} failed: {reason}", record.run),
        RunStatus::Cancelled => bail!("run {} was cancelled after round {}", record.run, record.round),
        RunStatus::Completed | RunStatus::Pending | RunStatus::Running => Ok(()),
    }
}

async fn change(endpoint: &str, Named { run, connection, output }: Named) -> Result<()> {
    let bus = connection.open().await?;
    let record: RunRecord = bus.request(endpoint, &RunRequest { run }).await?;
    output.show(&record, |record| format!("run {} is {}", record.run, record.status.word()))
}

fn table(runs: &[RunRecord]) -> String {
    let mut table = output::table(&["run", "status", "round", "cohort", "model", "adapter"], [2, 3]);
    for record in runs {
        table.add_row([
            record.run.to_string(),
            record.status.word().to_owned(),
            format!("{}/{}", record.round, record.spec.rounds),
            record.spec.cohort.to_string(),
            record.spec.model.name.to_string(),
            record.adapter.short(),
        ]);
    }
    table.trim_fmt()
}

fn human(view: &RunView) -> String {
    let record = &view.record;
    let mut text = table(std::slice::from_ref(record));
    if let RunStatus::Failed { reason } = &record.status {
        let _ = write!(text, "\n\nfailed: {reason}");
    }
    if let Some(open) = &record.open {
        let _ =
            write!(text, "\n\nround {} is open, its cohort has {} clients", open.round, open.cohort.len());
    }
    if !view.rounds.is_empty() {
        let _ = write!(text, "\n\n{}", view::table(&view.rounds));
    }
    text
}
