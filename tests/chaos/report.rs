//! What the faults cost, by kind: a table for people, JSON for programs.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use fedpeft_protocol::Round;
use serde::Serialize;

use crate::{schedule::Kind, verdict::Verdict};

/// A fault that has struck.
#[derive(Debug, Clone, Serialize)]
pub struct Struck {
    #[serde(skip)]
    pub kind: Kind,
    pub fault: &'static str,
    /// What it hit.
    pub detail: String,
    pub run: String,
    /// The round that was open, or opened next.
    pub round: Round,
    pub step: String,
    /// Until the fault itself was over.
    pub lasted_seconds: f64,
    /// Until everything was ready and the round was closed.
    pub recovery_seconds: f64,
}

/// A whole trial.
#[derive(Debug, Serialize)]
pub struct Report {
    pub seed: u64,
    pub faults: Vec<Struck>,
    pub verdicts: Vec<Verdict>,
    /// How often each process was started.
    pub starts: BTreeMap<String, u32>,
    pub calm_seconds: f64,
    pub disturbed_seconds: f64,
    /// Median time of a round without faults.
    pub calm_round_seconds: f64,
}

impl Report {
    /// Everything that is not as it should be.
    pub fn problems(&self) -> Vec<String> {
        let of = |verdict: &Verdict| {
            let run = verdict.run.clone();
            verdict.problems.iter().map(move |problem| format!("run {run}, {problem}")).collect::<Vec<_>>()
        };
        self.verdicts.iter().flat_map(of).collect()
    }

    /// Writes it as JSON.
    pub fn write(&self, path: &Path) {
        fs::write(path, serde_json::to_string_pretty(self).unwrap() + "\n").unwrap();
    }

    /// The table, a row for each kind of fault, and a line on the whole.
    pub fn table(&self) -> String {
        let mut kinds: BTreeMap<Kind, Vec<&Struck>> = BTreeMap::new();
        for struck in &self.faults {
            kinds.entry(struck.kind).or_default().push(struck);
        }
        let headings = ["fault", "times", "lasts", "recovery: min", "median", "max", "lost", "counted twice"];
        let mut rows = vec![headings.map(str::to_owned)];
        rows.extend(kinds.iter().map(|(kind, struck)| self.row(kind.name(), struck)));
        rows.push(self.row("all", &self.faults.iter().collect::<Vec<_>>()));
        let widths: Vec<usize> =
            (0..headings.len()).map(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0)).collect();
        let line = |row: &[String; 8]| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
        };
        let mut lines: Vec<String> = rows.iter().map(line).collect();
        let rule = widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>().join(" | ");
        lines.insert(1, format!("| {rule} |"));
        lines.join("\n")
    }

    fn row(&self, name: &str, struck: &[&Struck]) -> [String; 8] {
        let sorted = |value: fn(&Struck) -> f64| {
            let mut values: Vec<f64> = struck.iter().map(|struck| value(struck)).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let (lasted, recovery) = (sorted(|s| s.lasted_seconds), sorted(|s| s.recovery_seconds));
        let hit = |keys: fn(&Verdict) -> Vec<Round>| {
            let of_run = |verdict: &Verdict, round: Round| {
                struck.iter().any(|struck| struck.run == verdict.run && struck.round == round)
            };
            let count =
                |verdict: &Verdict| keys(verdict).into_iter().filter(|round| of_run(verdict, *round)).count();
            self.verdicts.iter().map(count).sum::<usize>().to_string()
        };
        [
            name.to_owned(),
            struck.len().to_string(),
            seconds(lasted[lasted.len() / 2]),
            seconds(recovery[0]),
            seconds(recovery[recovery.len() / 2]),
            seconds(recovery[recovery.len() - 1]),
            hit(|verdict| verdict.lost.iter().map(|(round, _)| *round).collect()),
            hit(|verdict| verdict.twice.iter().map(|(round, _)| *round).collect()),
        ]
    }
}

/// Seconds in a table.
fn seconds(value: f64) -> String {
    format!("{value:.1} s")
}

/// A duration for [`Struck`].
pub fn in_seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}
