//! `--dry-run`: what there is to do and how long it takes.

use anyhow::Result;
use fedpeft_experiment::{Estimate, Folder, Grid, Status, Trial, calibration};
use serde_json::json;

use super::Args;
use crate::output;

impl Args {
    /// What there is to do.
    pub(super) fn list(
        &self,
        grid: &Grid,
        trials: &[Trial],
        estimates: &[Estimate],
        jobs: usize,
    ) -> Result<()> {
        let folder = Folder::view(&self.folder());
        let statuses = trials.iter().map(|trial| folder.status(trial)).collect::<Result<Vec<_>, _>>()?;
        let finished = estimates.iter().zip(&statuses).filter_map(|(estimate, status)| match status {
            Status::Finished(outcome) => Some((*estimate, outcome.as_ref())),
            _ => None,
        });
        let slower = calibration(finished);
        let open =
            || estimates.iter().zip(&statuses).filter(|(_, status)| !matches!(status, Status::Finished(_)));
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
            let show =
                |value: Option<f64>| value.map_or("?".to_owned(), |value| output::grouped(value as u64));
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
}
