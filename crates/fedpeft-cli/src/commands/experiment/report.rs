//! The reports of an experiment.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use fedpeft_experiment::{
    Figure, Folder, Grid, Summary, Trial, figures, inject, page, results, rounds_csv, section, summary_csv,
};

use super::Args;
use crate::output;

impl Args {
    /// Writes the reports and says where they are.
    pub(super) fn conclude(&self, grid: &Grid, trials: &[Trial], folder: &Folder) -> Result<()> {
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
            let results = results(summary);
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
