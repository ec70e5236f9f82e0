//! `fedpeft report`: what happened in a run, for people and for programs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fedpeft_artifacts::manifest::{MANIFEST_LIMIT, Manifest};
use fedpeft_bus::Bus;
use fedpeft_protocol::RunId;

use crate::{
    connect::{Connection, block_on},
    output, records,
    report::{Format, Report},
};

/// Which run, and where to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fedpeft report trial-7 -o report.html
  fedpeft report trial-7 -o rounds.csv
  fedpeft report trial-7 | jq '.rounds[].accuracy'
  fedpeft simulate --config run.toml --json report.json && fedpeft report --from report.json -o report.html

A page needs nothing else: plots and tables are in one file, without scripts. A run that goes on is reported as far as it is.")]
pub struct Args {
    /// Name of the run.
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    run: Option<RunId>,
    /// Read this JSON report instead of asking the broker.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// File to write, .html, .json or .csv; - is the standard output.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// What to write, whatever the name of the file [default: what its name ends with, else json].
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    connection: Connection,
}

/// Writes the report.
pub fn run(args: Args) -> Result<()> {
    block_on(Box::pin(report(args)))
}

/// The same, for those who wait already.
pub async fn report(args: Args) -> Result<()> {
    let Args { run, from, output, format, connection } = args;
    // A name that says nothing useful is told before anything is asked for.
    let format = format.map_or_else(|| Format::of(&output), Ok)?;
    let report = match (run, from) {
        (Some(run), _) => of_run(&connection.open().await?, &run).await?,
        (None, from) => Report::read(from.as_deref().unwrap_or(Path::new("")))?,
    };
    report.write(&output, format)
}

/// A report of a run as the broker stores it.
async fn of_run(bus: &Bus, run: &RunId) -> Result<Report> {
    let view = records::view(bus, run).await?;
    let digest = view.record.manifest;
    let mut report = Report::new(view);
    // Somebody may have pruned the artifacts of an old run: its rounds are still worth a report.
    match bus.get_blob(&digest, MANIFEST_LIMIT).await {
        Ok((manifest, _)) => report.describe(&Manifest::from_json(&manifest)?),
        Err(error) => {
            output::remark(format!("the artifacts of {run} cannot be read, so sizes are missing: {error}"));
        }
    }
    Ok(report)
}
