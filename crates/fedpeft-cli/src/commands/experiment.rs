//! `fedpeft experiment`: a grid of simulations, one process each, and a report of what came of it.

mod board;

use std::{
    env, fs,
    num::NonZero,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, bail};
use fedpeft_experiment::{
    Estimate, Figure, Folder, Grid, Launch, Place, Shape, Status, Summary, Table, Trial, calibration, figures,
    inject, page, rounds_csv, section, summary_csv,
};
use serde_json::json;
use tokio::process::Command;

use crate::{
    config::{Config, Document},
    connect,
    output::{self, Interrupted, Output},
    simulate::{self, programs::Places},
};
use board::Board;

/// What to run.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fedpeft experiment experiments/paper-methods.toml --dry-run      # which trials there are, how long they take
  fedpeft experiment experiments/paper-methods.toml --quick        # a small version, within 20 minutes on two cores
  fedpeft experiment experiments/paper-methods.toml --jobs 4
  fedpeft experiment experiments/paper-methods.toml --quick --report --markdown docs/results.md

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
    let base = args.grid.parent().unwrap_or(Path::new(""));
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
    let program = Simulate { program: env::current_exe()?, base: std::path::absolute(base)?, places: &args.places };
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

    /// What there is to do.
    fn list(&self, grid: &Grid, trials: &[Trial], estimates: &[Estimate], jobs: usize) -> Result<()> {
        let folder = Folder::view(&self.folder());
        let statuses = trials.iter().map(|trial| folder.status(trial)).collect::<Result<Vec<_>, _>>()?;
        let finished = estimates.iter().zip(&statuses).filter_map(|(estimate, status)| match status {
            Status::Finished(outcome) => Some((*estimate, outcome.as_ref())),
            _ => None,
        });
        let slower = calibration(finished);
        let open = || estimates.iter().zip(&statuses).filter(|(_, status)| !matches!(status, Status::Finished(_)));
        let seconds: Option<f64> = open().map(|(estimate, _)| estimate.seconds).sum();
        let seconds = seconds.map(|sum| sum * slower / jobs as f64);
        if self.shown.is_json() {
            let row = |((trial, estimate), status): ((&Trial, &Estimate), &Status)| {
                json!({
                    "id": trial.id, "label": trial.label, "status": status.word(), "run": trial.run,
                    "example_passes": estimate.passes, "seconds": estimate.seconds.map(|own| own * slower),
                })
            };
            let rows: Vec<_> = trials.iter().zip(estimates).zip(&statuses).map(row).collect();
            let all = json!({ "title": grid.title, "jobs": jobs, "seconds": seconds, "trials": rows });
            return output::print(serde_json::to_string_pretty(&all)?);
        }
        let mut table = output::table(&["trial", "what", "status", "example passes", "seconds"], [3, 4]);
        for ((trial, estimate), status) in trials.iter().zip(estimates).zip(&statuses) {
            let show = |value: Option<f64>| value.map_or("?".to_owned(), |value| output::grouped(value as u64));
            table.add_row([
                trial.id.to_string(),
                trial.label.clone(),
                status.word().to_owned(),
                show(estimate.passes),
                show(estimate.seconds.map(|own| own * slower)),
            ]);
        }
        output::print(table.trim_fmt())?;
        let left = open().count();
        let total = match seconds {
            None => "how long they take is not known: give estimate.ms_per_example".to_owned(),
            Some(seconds) => format!("about {:.0} minutes, {jobs} at a time", (seconds / 60.0).ceil()),
        };
        output::print(format!("{left} of {} trials are to be run, {total}", trials.len()))
    }

    /// Writes the reports and says where they are.
    fn conclude(&self, grid: &Grid, trials: &[Trial], folder: &Folder) -> Result<()> {
        let summary = Summary::read(grid, trials, folder, self.command())?;
        let figures = figures(grid, &summary)?;
        let file = fs::read_to_string(&self.grid).unwrap_or_default();
        if folder.path().is_dir() {
            folder.write("rounds.csv", &rounds_csv(&summary)?)?;
            folder.write("summary.csv", &summary_csv(&summary)?)?;
            folder.write("report.html", &page(&summary, &file, &figures))?;
        }
        if let Some(markdown) = &self.markdown {
            self.write_markdown(markdown, &summary, &figures)?;
        }
        self.shown.show(&summary, |summary| {
            let results = Table::results(summary);
            let header: Vec<&str> = results.header.iter().map(String::as_str).collect();
            let mut text = output::table(&header, summary.axes.len()..header.len());
            for row in &results.rows {
                text.add_row(row);
            }
            let (finished, failed) = (summary.count("finished"), summary.count("failed"));
            format!(
                "{}\n{finished} of {} trials are finished, {failed} failed; the report is {}",
                text.trim_fmt(),
                summary.trials.len(),
                folder.path().join("report.html").display()
            )
        })
    }

    /// Puts the tables into a Markdown file, and plots and CSV into a folder beside it.
    fn write_markdown(&self, path: &Path, summary: &Summary, figures: &[Figure]) -> Result<()> {
        let name = self.grid.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let plots = PathBuf::from(path.file_stem().unwrap_or_default()).join(&name);
        let folder = path.parent().unwrap_or(Path::new("")).join(&plots);
        fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        let beside = Folder::view(&folder);
        for figure in figures {
            beside.write(&format!("{}.svg", figure.name), &figure.svg)?;
        }
        beside.write("rounds.csv", &rounds_csv(summary)?)?;
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        };
        let text = inject(&text, &name, &section(summary, figures, &plots.to_string_lossy()));
        fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
    }
}

/// What a configuration means for the time it takes.
fn shape(config: &Config) -> Shape {
    let Config { run, data, simulate, .. } = config;
    let all = u32::try_from(cores()).unwrap_or(u32::MAX);
    let own = simulate.workers.zip(simulate.threads).map(|(workers, threads)| workers.saturating_mul(threads));
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

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Runs a trial with `fedpeft simulate`.
struct Simulate<'a> {
    program: PathBuf,
    base: PathBuf,
    places: &'a Places,
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

#[cfg(test)]
mod tests;
