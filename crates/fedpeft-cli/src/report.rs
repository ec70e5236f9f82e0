//! The JSON report of a run.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use fedpeft_protocol::{
    Digest, PROTOCOL_VERSION, RunId,
    round::RoundReport,
    run::{RunStatus, RunView},
};
use serde::Serialize;

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
    pub versions: BTreeMap<&'static str, String>,
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
    /// Largest resident set of each process that this command started.
    pub peak_rss_bytes: BTreeMap<String, u64>,
}

impl<'a> Report<'a> {
    /// A report of a run about whose processes nothing is known.
    pub fn new(view: &'a RunView) -> Self {
        let config = serde_json::json!({ "run": &view.record.spec });
        Self::of_processes(view, config, BTreeMap::new())
    }

    /// A report of a run whose processes were watched.
    pub fn of_processes(
        view: &'a RunView,
        config: serde_json::Value,
        peak_rss_bytes: BTreeMap<String, u64>,
    ) -> Self {
        let RunView { record, rounds } = view;
        Self {
            run: &record.run,
            status: &record.status,
            config,
            versions: BTreeMap::from([
                ("fedpeft", env!("CARGO_PKG_VERSION").to_owned()),
                ("protocol", PROTOCOL_VERSION.to_string()),
            ]),
            rounds,
            totals: Totals {
                bytes_up: rounds.iter().map(|round| round.bytes_up).sum(),
                bytes_down: rounds.iter().map(|round| round.bytes_down).sum(),
                seconds: rounds.iter().map(|round| round.seconds.total).sum(),
                peak_rss_bytes,
            },
            adapter_sha256: record.adapter,
        }
    }

    /// Writes the report to `path`, whole or not at all; `-` is the standard output.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        if path == Path::new("-") {
            return crate::output::print(text);
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
