//! `fedpeft experiment`: a grid of simulations, one process each, and a report of what came of it.

mod board;
mod launch;
mod listing;
mod report;

use std::{
    env,
    num::NonZero,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use fedpeft_experiment::{Estimate, Folder, Grid, Shape, Status, Trial};

use crate::{
    config::Document,
    connect,
    output::{self, Interrupted, Output},
    simulate::{self, programs::Places},
};
use board::Board;
use launch::{Simulate, cores, shape};

/// What to run.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fedpeft experiment experiments/paper-methods.toml --dry-run      # which trials there are, how long they take
  fedpeft experiment experiments/paper-methods.toml --quick        # a small version, within 20 minutes on two cores
  fedpeft experiment experiments/paper-methods.toml --jobs 4
  fedpeft experiment experiments/paper-methods.toml --quick --report --markdown results.md

A grid is a run.toml in [base], axes whose values are named pieces of run.toml, and seeds. Each trial is one
`fedpeft simulate`. What is finished is kept: the same command goes on where it was interrupted, tries failed trials
again, and after a change of the grid runs what is new. The folder holds report.html, rounds.csv and summary.csv.")]
pub struct Args {
    /// The grid.
    #[arg(value_name = "FILE")]
    grid: PathBuf,
    /// Run the small version that the section [quick] describes.
    #[arg(long)]
    quick: bool,
    /// Folder for trials and reports [default: beside the grid, FILE without .toml and with .results or .quick.results].
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Trials at once [default: the cores divided by those that a trial keeps busy].
    #[arg(long, value_name = "N")]
    jobs: Option<NonZero<usize>>,
    /// List the trials with an estimate of their time, and run nothing.
    #[arg(long, conflicts_with = "report")]
    dry_run: bool,
    /// Make the reports from the trials that are finished, and run nothing.
    #[arg(long)]
    report: bool,
    /// Put tables into this Markdown file too, between marks with the name of the grid, and plots into a folder beside it.
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    markdown: Option<PathBuf>,
    #[command(flatten)]
    shown: Output,
    #[command(flatten)]
    places: Places,
}

/// Runs what is missing, then reports.
pub fn run(args: &Args) -> Result<()> {
    let grid = Grid::read(&args.grid)?;
    let grid = if args.quick { grid.quick()? } else { grid };
    let trials = grid.trials()?;
    // The folder of a bare name is written as no name at all.
    let base = args.grid.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shapes = trials.iter().map(|trial| args.shape(&grid, trial, base)).collect::<Result<Vec<_>>>()?;
    let estimates: Vec<Estimate> =
        trials.iter().zip(&shapes).map(|(trial, shape)| shape.estimate(trial, &grid.estimate)).collect();
    let jobs = args.jobs(&shapes);
    if args.dry_run {
        return args.list(&grid, &trials, &estimates, jobs);
    }
    let folder = args.folder();
    if args.report {
        return args.conclude(&grid, &trials, &Folder::view(&folder));
    }
    let folder = Folder::open(&folder)?;
    let mut missing = Vec::new();
    let mut board = Board::new(trials.len());
    for ((trial, estimate), shape) in trials.iter().zip(&estimates).zip(&shapes) {
        match folder.status(trial)? {
            Status::Finished(_) => board.skip(),
            _ => {
                board.expect(trial, *estimate, shape.rounds);
                missing.push(trial.clone());
            }
        }
    }
    let program =
        Simulate { program: env::current_exe()?, base: std::path::absolute(base)?, places: &args.places };
    let interrupted = connect::block_on(Box::pin(async {
        let mut interrupted = false;
        let stop = async {
            simulate::interrupted().await;
            interrupted = true;
            output::remark("stopping: what is begun is kept");
        };
        fedpeft_experiment::run(&folder, &missing, jobs, &program, stop, |event| board.show(event)).await?;
        Ok(interrupted)
    }))?;
    drop(board);
    args.conclude(&grid, &trials, &folder)?;
    if interrupted {
        return Err(Interrupted.into());
    }
    let failed: Vec<&Trial> = missing.iter().filter(|trial| is_failed(&folder, trial)).collect();
    match failed.first() {
        None => Ok(()),
        Some(first) => bail!(
            "{} of {} trials failed, {} ({}) among them: the same command tries them again; logs are in {}",
            failed.len(),
            trials.len(),
            first.label,
            first.id,
            folder.path().join("work").display()
        ),
    }
}

fn is_failed(folder: &Folder, trial: &Trial) -> bool {
    matches!(folder.status(trial), Ok(Status::Failed(_)))
}

impl Args {
    fn folder(&self) -> PathBuf {
        let suffix = if self.quick { "quick.results" } else { "results" };
        self.output.clone().unwrap_or_else(|| self.grid.with_extension(suffix))
    }

    /// Types and checks a trial as its simulation will.
    fn shape(&self, grid: &Grid, trial: &Trial, base: &Path) -> Result<Shape> {
        let name = format!("{} ({})", grid.file, trial.label);
        let document = Document::of_table(name.clone(), base, trial.run.clone());
        let config = simulate::simulated(document, self.places.assets().as_deref());
        Ok(shape(&config.map_err(|error| {
            // Errors of a section begin with the name already.
            let error = output::one_line(&error);
            anyhow::anyhow!(if error.starts_with(&name) { error } else { format!("{name}: {error}") })
        })?))
    }

    fn jobs(&self, shapes: &[Shape]) -> usize {
        let busiest = shapes.iter().map(|shape| shape.cores).max().unwrap_or(1) as usize;
        self.jobs.map_or((cores() / busiest.max(1)).max(1), NonZero::get)
    }

    /// The command that does the same.
    fn command(&self) -> String {
        let quick = if self.quick { " --quick" } else { "" };
        format!("fedpeft experiment {}{quick}", self.grid.display())
    }
}

#[cfg(test)]
mod tests;
