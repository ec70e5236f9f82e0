//! `fedpeft run watch`: a run as it happens, for people at a terminal, for logs, and for programs.

mod lines;
mod screen;

use std::{
    env, fs,
    io::{IsTerminal as _, stdin, stdout},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use fedpeft_bus::Bus;
use fedpeft_protocol::RunId;

use crate::{
    commands::run::check,
    connect::Connection,
    follow,
    output::{self, Output},
    records,
    report::Report,
    view::{Sink, View},
};

/// Which run, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fedpeft run watch trial-7
  fedpeft run watch trial-7 --plain | tee trial-7.log
  fedpeft run watch trial-7 --json | jq -r 'select(.event == \"round_closed\").report.accuracy'

At a terminal the run fills the screen: its rounds, the phase of the open one and what is left of its deadline, accuracy, bytes,
epsilon, clients, and what happened. Leave with q; the run goes on. A run that is over is shown as it was, until q. Elsewhere,
and with --plain, a line is printed for every round until the run ends. With --json, every event is one line.")]
pub struct Args {
    /// Name of the run.
    run: RunId,
    /// Print a line for every round instead of filling the screen.
    #[arg(long, conflicts_with = "json")]
    plain: bool,
    /// Draw the screen as it is now into this SVG file, and end.
    #[arg(long, value_name = "FILE", hide = true)]
    svg: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// Shows a run until it ends, or until its reader leaves.
pub async fn watch(args: Args) -> Result<()> {
    let Args { run, plain, svg, connection, output } = args;
    let bus = connection.open().await?;
    if let Some(path) = svg {
        let picture = screen::picture(&bus, &run).await?;
        return fs::write(&path, picture).with_context(|| format!("{} cannot be written", path.display()));
    }
    if output.is_json() {
        // A run that is not there has no events, and never will.
        records::record(&bus, &run).await?;
        let ended = follow::to_the_end(&bus, &run, &mut lines::Lines::default()).await?;
        return check(&ended.record);
    }
    if plain || !has_screen() {
        return table(&bus, &run, Sink::Stdout).await;
    }
    match screen::show(&bus, &run).await? {
        None => output::print(format!("run {run} goes on")),
        Some(ended) => {
            let verdict = check(&ended.record);
            if verdict.is_ok() {
                output::print(Report::new(ended).summary())?;
            }
            verdict
        }
    }
}

/// Prints a line for every round until the run ends.
pub async fn table(bus: &Bus, run: &RunId, sink: Sink) -> Result<()> {
    let record = records::record(bus, run).await?;
    let mut view = View::new(record.spec.rounds, sink);
    let finished = follow::to_the_end(bus, run, &mut view).await?;
    check(&finished.record)
}

/// Whether there is somebody with keys in front of a terminal that can move its cursor.
fn has_screen() -> bool {
    let is_dumb = env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    stdin().is_terminal() && stdout().is_terminal() && !is_dumb
}
