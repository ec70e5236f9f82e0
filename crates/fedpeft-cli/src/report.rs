//! The JSON report of a run.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use fedpeft_protocol::{
    Digest, PROTOCOL_VERSION, RunId,
    round::{ClientOutcome, RoundReport},
    run::{RunStatus, RunView},
};
use serde::Serialize;

use crate::output;

/// What happened in a run, round by round.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Name of the run.
    pub run: &'a RunId,
    /// How it ended, or where it stands.
    pub status: &'a RunStatus,
    /// What was asked for.
    pub config: serde_json::Value,
    /// Versions of what took part.
    pub versions: BTreeMap<String, String>,
    /// The committed rounds.
    pub rounds: &'a [RoundReport],
    /// Sums over the rounds, and memory.
    pub totals: Totals,
    /// Digest of the global adapter after the last committed round.
    pub adapter_sha256: Digest,
    /// Hash over the ledger of all rounds, which `fedpeft run verify` checks.
    pub ledger_sha256: Digest,
}

/// Sums over all rounds, and memory.
#[derive(Debug, Serialize)]
pub struct Totals {
    /// Bytes from all clients.
    pub bytes_up: u64,
    /// Bytes to all clients.
    pub bytes_down: u64,
    /// Seconds of all rounds.
    pub seconds: f64,
    /// Bytes of one adapter, without any envelope, where known.
    pub adapter_bytes: Option<u64>,
    /// Values in the frozen backbone, where known.
    pub backbone_values: Option<u64>,
    /// Largest resident set of each process that this command started.
    pub peak_rss_bytes: BTreeMap<String, u64>,
}

/// What the command that started the processes knows beside the run.
#[derive(Debug, Default)]
pub struct Processes {
    /// Largest resident set of each.
    pub peak_rss_bytes: BTreeMap<String, u64>,
    /// Versions of programs and libraries that are not ours.
    pub versions: BTreeMap<String, String>,
    /// Bytes of one adapter.
    pub adapter_bytes: Option<u64>,
    /// Values in the backbone.
    pub backbone_values: Option<u64>,
}

impl<'a> Report<'a> {
    /// A report of a run about whose processes nothing is known.
    pub fn new(view: &'a RunView) -> Self {
        let config = serde_json::json!({ "run": &view.record.spec });
        Self::of_processes(view, config, Processes::default())
    }

    /// A report of a run whose processes were watched.
    pub fn of_processes(view: &'a RunView, config: serde_json::Value, processes: Processes) -> Self {
        let RunView { record, rounds } = view;
        let Processes { peak_rss_bytes, mut versions, adapter_bytes, backbone_values } = processes;
        versions.insert("fedpeft".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        versions.insert("protocol".to_owned(), PROTOCOL_VERSION.to_string());
        Self {
            run: &record.run,
            status: &record.status,
            config,
            versions,
            rounds,
            totals: Totals {
                bytes_up: rounds.iter().map(|round| round.bytes_up).sum(),
                bytes_down: rounds.iter().map(|round| round.bytes_down).sum(),
                seconds: rounds.iter().map(|round| round.seconds.total).sum(),
                adapter_bytes,
                backbone_values,
                peak_rss_bytes,
            },
            adapter_sha256: record.adapter,
            ledger_sha256: record.ledger,
        }
    }

    /// A few lines for people.
    pub fn summary(&self) -> String {
        let Totals { bytes_up, bytes_down, seconds, .. } = self.totals;
        let rounds = self.rounds.len();
        let accuracy = self.rounds.iter().rev().find_map(|round| round.accuracy);
        let accuracy = accuracy.map_or_else(String::new, |value| format!(", accuracy {value:.4}"));
        let mut text = format!(
            "run {} {} after {rounds} rounds in {seconds:.1} s{accuracy}: {} up, {} down\n",
            self.run,
            self.status.word(),
            output::bytes(bytes_up),
            output::bytes(bytes_down),
        );
        if let Some(line) = self.privacy_spent() {
            text += &line;
        }
        if let Some(line) = self.secured() {
            text += &line;
        }
        if let Some(line) = self.update_cost() {
            text += &line;
        }
        text + &format!("adapter sha256 {}", self.adapter_sha256)
    }

    /// What the run has spent of its budget, where it has one.
    fn privacy_spent(&self) -> Option<String> {
        let spent = self.rounds.iter().rev().find_map(|round| round.privacy)?;
        let budget = &self.config["run"]["privacy"];
        Some(format!(
            "epsilon {:.3} of {} spent at delta {}, noise multiplier {:.3}, last clipping norm {:.4}\n",
            spent.epsilon, budget["epsilon"], budget["delta"], spent.noise_multiplier, spent.clip_norm
        ))
    }

    /// How secure the sums were, and what that took, where the run has secure aggregation.
    fn secured(&self) -> Option<String> {
        let rounds = || self.rounds.iter().filter_map(|round| Some((round, round.secure.as_ref()?)));
        let (_, last) = rounds().last()?;
        let sums = rounds().filter_map(|(_, secure)| secure.stages.get(2));
        let (least, count) = (sums.min()?, rounds().count());
        let seconds: f64 = rounds().map(|(round, secure)| secure.extra_seconds(&round.seconds)).sum();
        Some(format!(
            "secure aggregation: sums of {least} updates and more, {} of {} shares to recover a secret, {} bits per value, \
             {:.2} s of exchanges per round\n",
            last.threshold,
            last.neighbours + 1,
            last.bits,
            seconds / count as f64
        ))
    }

    /// What one update costs on the wire, beside the adapter in it.
    fn update_cost(&self) -> Option<String> {
        let clients = self.rounds.iter().flat_map(|round| &round.clients);
        let accepted = clients.filter(|client| matches!(client.outcome, ClientOutcome::Accepted { .. }));
        let (count, bytes) = accepted.fold((0u64, 0u64), |(n, sum), client| (n + 1, sum + client.bytes_up));
        let payload = self.totals.adapter_bytes.filter(|bytes| *bytes > 0)?;
        let mean = bytes.checked_div(count)?;
        let overhead = mean as f64 / payload as f64 - 1.0;
        Some(format!(
            "an update takes {} on the wire, {} more than the {} of its adapter\n",
            output::bytes(mean),
            output::percent(overhead),
            output::bytes(payload),
        ))
    }

    /// Writes the report to `path`, whole or not at all; `-` is the standard output.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        if path == Path::new("-") {
            return output::print(text);
        }
        let context = || format!("the report cannot be written to {}", path.display());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            fs::create_dir_all(folder).with_context(context)?;
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        fs::write(&partial, text + "\n").and_then(|()| fs::rename(&partial, path)).with_context(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn view() -> RunView {
        let client = |name: &str, outcome: serde_json::Value| {
            let mut client = json!({
                "client": name, "examples": 5, "bytes_up": 1010, "bytes_down": 1020, "loss": 0.5, "train_seconds": 0.25,
            });
            client.as_object_mut().unwrap().extend(outcome.as_object().unwrap().clone());
            client
        };
        let digest = Digest::of("adapter").to_string();
        let round = |number: u32| {
            json!({
                "round": number, "loss": 0.4, "accuracy": 0.8, "train_loss": 0.5, "bytes_up": 1010, "bytes_down": 2040,
                "bytes_by_kind": {"up.adapter": 1000, "up.control": 10, "down.adapter": 2000, "down.control": 40},
                "clients": [
                    client("a", json!({"outcome": "accepted", "digest": digest})),
                    client("b", json!({"outcome": "dropped"})),
                ],
                "seconds": {"select": 0, "broadcast": 0, "train": 0, "collect": 0, "aggregate": 0, "evaluate": 0, "total": 1.5},
                "adapter": digest,
            })
        };
        serde_json::from_value(json!({
            "record": {
                "version": 1, "run": "r", "spec": {"model": {"name": "m"}, "rounds": 2, "cohort": 2},
                "manifest": digest, "status": {"state": "completed"}, "round": 2, "adapter": digest, "open": null,
                "epoch": 1, "created_ms": 0, "updated_ms": 0,
            },
            "rounds": [round(1), round(2)],
        }))
        .unwrap()
    }

    #[test]
    fn the_report_sums_up_and_says_what_an_update_costs() {
        let view = view();
        let processes = Processes { adapter_bytes: Some(1000), ..Processes::default() };
        let report = Report::of_processes(&view, json!({}), processes);
        assert_eq!((report.totals.bytes_up, report.totals.bytes_down), (2020, 4080));
        let summary = report.summary();
        assert!(summary.contains("completed after 2 rounds in 3.0 s, accuracy 0.8000"), "{summary}");
        assert!(
            summary.contains("an update takes 1010 B on the wire, 1.00 % more than the 1000 B"),
            "{summary}"
        );
        assert!(summary.ends_with(&view.record.adapter.to_string()), "{summary}");
    }

    #[test]
    fn the_file_has_the_promised_fields_and_appears_whole() {
        let (view, folder) = (view(), tempfile::tempdir().unwrap());
        let path = folder.path().join("deep/report.json");
        Report::new(&view).write(&path).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for field in ["config", "versions", "rounds", "totals", "adapter_sha256"] {
            assert!(!read[field].is_null(), "{field}");
        }
        assert_eq!(read["rounds"][0]["clients"][1]["outcome"], "dropped");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let error = Report::new(&view).write(Path::new("/proc/nowhere/r.json")).unwrap_err();
        assert!(output::one_line(&error).contains("the report cannot be written"));
    }
}
