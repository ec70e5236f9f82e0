//! The report of a run: JSON and CSV for programs, a page for people.

mod page;
mod plots;
mod rows;
#[cfg(test)]
mod tests;
mod write;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use fedpeft_artifacts::manifest::Manifest;
use fedpeft_protocol::{
    Digest, PROTOCOL_VERSION, RunId,
    round::{ClientOutcome, RoundReport},
    run::{RunStatus, RunView},
};
use serde::{Deserialize, Serialize};

use crate::output;
pub use write::Format;

/// What happened in a run, round by round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Name of the run.
    pub run: RunId,
    /// How it ended, or where it stands.
    pub status: RunStatus,
    /// When it was created, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub created_ms: u64,
    /// When its state was last written, likewise.
    #[serde(default)]
    pub updated_ms: u64,
    /// PEFT method of its artifacts, where known.
    #[serde(default)]
    pub method: Option<String>,
    /// What was asked for.
    pub config: serde_json::Value,
    /// Versions of what took part.
    pub versions: BTreeMap<String, String>,
    /// The committed rounds.
    pub rounds: Vec<RoundReport>,
    /// Sums over the rounds, and memory.
    pub totals: Totals,
    /// Digest of the manifest of its artifacts.
    #[serde(default)]
    pub manifest_sha256: Option<Digest>,
    /// Digest of the global adapter after the last committed round.
    pub adapter_sha256: Digest,
    /// Hash over the ledger of all rounds, which `fedpeft run verify` checks.
    pub ledger_sha256: Digest,
}

/// Sums over all rounds, and memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// PEFT method of the artifacts.
    pub method: Option<String>,
    /// Bytes of one adapter.
    pub adapter_bytes: Option<u64>,
    /// Values in the backbone.
    pub backbone_values: Option<u64>,
}

impl Report {
    /// A report of a run about whose processes nothing is known.
    pub fn new(view: RunView) -> Self {
        let config = serde_json::json!({ "run": &view.record.spec });
        Self::of_processes(view, config, Processes::default())
    }

    /// A report of a run whose processes were watched.
    pub fn of_processes(view: RunView, config: serde_json::Value, processes: Processes) -> Self {
        let RunView { record, rounds } = view;
        let Processes { peak_rss_bytes, mut versions, method, adapter_bytes, backbone_values } = processes;
        versions.insert("fedpeft".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        versions.insert("protocol".to_owned(), PROTOCOL_VERSION.to_string());
        let totals = Totals {
            bytes_up: rounds.iter().map(|round| round.bytes_up).sum(),
            bytes_down: rounds.iter().map(|round| round.bytes_down).sum(),
            seconds: rounds.iter().map(|round| round.seconds.total).sum(),
            adapter_bytes,
            backbone_values,
            peak_rss_bytes,
        };
        Self {
            run: record.run,
            status: record.status,
            created_ms: record.created_ms,
            updated_ms: record.updated_ms,
            method,
            config,
            versions,
            rounds,
            totals,
            manifest_sha256: Some(record.manifest),
            adapter_sha256: record.adapter,
            ledger_sha256: record.ledger,
        }
    }

    /// The report that a JSON file holds.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is no report of a run", path.display()))
    }

    /// Adds what the artifacts of the run say.
    pub fn describe(&mut self, manifest: &Manifest) {
        self.method = Some(manifest.method.to_string());
        self.totals.adapter_bytes.get_or_insert(manifest.adapter.bytes());
        self.totals.backbone_values.get_or_insert(manifest.backbone.values);
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
        if let Some(spent) = self.privacy_spent() {
            text += &format!("{spent}\n");
        }
        if let Some(secured) = self.secured() {
            text += &format!("{secured}\n");
        }
        if let Some(cost) = self.update_cost() {
            text += &format!("an update takes {cost}\n");
        }
        text + &format!("adapter sha256 {}", self.adapter_sha256)
    }

    /// What the run has spent of its budget, where it has one.
    fn privacy_spent(&self) -> Option<String> {
        let spent = self.rounds.iter().rev().find_map(|round| round.privacy)?;
        let budget = &self.config["run"]["privacy"];
        Some(format!(
            "epsilon {:.3} of {} spent at delta {}, noise multiplier {:.3}, last clipping norm {:.4}",
            spent.epsilon, budget["epsilon"], budget["delta"], spent.noise_multiplier, spent.clip_norm
        ))
    }

    /// How secure the sums were, and what that took, where the run has secure aggregation.
    fn secured(&self) -> Option<String> {
        let rounds = || self.rounds.iter().filter_map(|round| Some((round, round.secure.as_ref()?)));
        let (_, last) = rounds().next_back()?;
        let sums = rounds().filter_map(|(_, secure)| secure.stages.get(2));
        let (least, count) = (sums.min()?, rounds().count());
        let seconds: f64 = rounds().map(|(round, secure)| secure.extra_seconds(&round.seconds)).sum();
        Some(format!(
            "secure aggregation: sums of {least} updates and more, {} of {} shares to recover a secret, {} bits per value, \
             {:.2} s of exchanges per round",
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
        let (wire, adapter) = (output::bytes(mean), output::bytes(payload));
        let ratio = mean as f64 / payload as f64;
        Some(match ratio >= 1.0 {
            true => format!(
                "{wire} on the wire, {} more than the {adapter} of its adapter",
                output::percent(ratio - 1.0)
            ),
            false => {
                format!("{wire} on the wire, {} of the {adapter} of its adapter", output::percent(ratio))
            }
        })
    }
}
