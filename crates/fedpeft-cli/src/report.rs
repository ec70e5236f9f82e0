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
        let Processes { peak_rss_bytes, mut versions, adapter_bytes } = processes;
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
                peak_rss_bytes,
            },
            adapter_sha256: record.adapter,
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
        if let Some(line) = self.update_cost() {
            text += &line;
        }
        text + &format!("adapter sha256 {}", self.adapter_sha256)
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
