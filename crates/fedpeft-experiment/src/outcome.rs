//! What came of a trial: the report of its run, as far as experiments need it.

use std::{collections::BTreeMap, fs, path::Path};

use fedpeft_protocol::{
    round::{ClientOutcome, ClientReport, RoundReport},
    run::RunStatus,
};
use serde::Deserialize;

use crate::ExperimentError;

/// What crossed the wire and what was reached, round by round.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The rounds, in order.
    pub rounds: Vec<RoundPoint>,
    /// Bytes of one adapter.
    pub adapter_bytes: Option<u64>,
    /// Values in the frozen backbone.
    pub backbone_values: Option<u64>,
    /// Seconds of all rounds together.
    pub seconds: f64,
    /// Versions of what took part.
    pub versions: BTreeMap<String, String>,
}

/// One round.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundPoint {
    /// Its number, from 1.
    pub round: u32,
    /// Held-out accuracy of the adapter it made, where it was evaluated.
    pub accuracy: Option<f64>,
    /// Held-out loss, likewise.
    pub loss: Option<f64>,
    /// Mean of the clients' training losses.
    pub train_loss: f64,
    /// Bytes from all clients.
    pub up: u64,
    /// Bytes to all clients, without what they fetch once.
    pub down: u64,
    /// Bytes of backbone and artifacts, which clients fetch before their first training.
    pub once: u64,
    /// Clients with a task.
    pub sampled: usize,
    /// Clients whose update is in the mean.
    pub accepted: usize,
    /// Seconds it took.
    pub seconds: f64,
    /// Privacy spent so far, where the run keeps an account.
    pub epsilon: Option<f64>,
}

/// The file that `fedpeft simulate --json` writes.
#[derive(Deserialize)]
struct Report {
    status: RunStatus,
    versions: BTreeMap<String, String>,
    rounds: Vec<RoundReport>,
    totals: Totals,
}

#[derive(Deserialize)]
struct Totals {
    seconds: f64,
    adapter_bytes: Option<u64>,
    backbone_values: Option<u64>,
}

impl Outcome {
    /// Reads a report. That of a run that did not complete is the reason why.
    pub fn read(path: &Path) -> Result<Result<Self, String>, ExperimentError> {
        let bytes = fs::read(path).map_err(ExperimentError::file(path))?;
        Self::parse(&bytes)
            .map_err(|error| ExperimentError::Report { path: path.to_owned(), message: error.to_string() })
    }

    fn parse(bytes: &[u8]) -> Result<Result<Self, String>, serde_json::Error> {
        let Report { status, versions, rounds, totals } = serde_json::from_slice(bytes)?;
        match status {
            RunStatus::Completed => {}
            RunStatus::Failed { reason } => return Ok(Err(reason)),
            other => return Ok(Err(format!("the run is {}", other.word()))),
        }
        Ok(Ok(Self {
            rounds: rounds.into_iter().map(RoundPoint::from).collect(),
            adapter_bytes: totals.adapter_bytes,
            backbone_values: totals.backbone_values,
            seconds: totals.seconds,
            versions,
        }))
    }

    /// Accuracy after the last round that was evaluated.
    pub fn final_accuracy(&self) -> Option<f64> {
        self.rounds.iter().rev().find_map(|round| round.accuracy)
    }

    /// Privacy spent by the end.
    pub fn epsilon(&self) -> Option<f64> {
        self.rounds.iter().rev().find_map(|round| round.epsilon)
    }

    /// Bytes up and down until the end of each round, without what clients fetch once.
    pub fn cumulative(&self) -> impl Iterator<Item = (&RoundPoint, u64)> {
        self.rounds.iter().scan(0u64, |sum, round| {
            *sum = sum.saturating_add(round.up).saturating_add(round.down);
            Some((round, *sum))
        })
    }

    /// Bytes until `accuracy` was reached first.
    pub fn bytes_to(&self, accuracy: f64) -> Option<u64> {
        let reached = |round: &RoundPoint| round.accuracy.is_some_and(|own| own >= accuracy);
        self.cumulative().find(|(round, _)| reached(round)).map(|(_, bytes)| bytes)
    }
}

impl From<RoundReport> for RoundPoint {
    fn from(report: RoundReport) -> Self {
        let once = |kind: &str| kind.ends_with(".backbone") || kind.ends_with(".artifacts");
        let once = report.bytes_by_kind.iter().filter(|(kind, _)| once(kind)).map(|(_, bytes)| bytes).sum();
        let accepted = |client: &&ClientReport| matches!(client.outcome, ClientOutcome::Accepted { .. });
        Self {
            round: report.round,
            accuracy: report.accuracy,
            loss: report.loss,
            train_loss: report.train_loss,
            up: report.bytes_up,
            down: report.bytes_down.saturating_sub(once),
            once,
            sampled: report.clients.len(),
            accepted: report.clients.iter().filter(accepted).count(),
            seconds: report.seconds.total,
            epsilon: report.privacy.map(|privacy| privacy.epsilon),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use fedpeft_protocol::Digest;
    use serde_json::json;

    /// The report of a run with these accuracies, 1 MiB each way a round, and a first round that also fetches.
    pub fn report(accuracies: &[f64]) -> String {
        let digest = Digest::of("adapter").to_string();
        let round = |(index, accuracy): (usize, &f64)| {
            let fetched = if index == 0 { 5 << 20 } else { 0 };
            json!({
                "round": index + 1, "loss": 1.0, "accuracy": accuracy, "train_loss": 0.5,
                "bytes_up": 1 << 20, "bytes_down": (1 << 20) + fetched,
                "bytes_by_kind": {
                    "up.adapter": 1 << 20, "down.adapter": 1 << 20, "down.backbone": fetched,
                },
                "clients": [
                    {"client": "a", "outcome": "accepted", "digest": digest, "examples": 5, "bytes_up": 1 << 20,
                     "bytes_down": (1 << 20) + fetched, "loss": 0.5, "train_seconds": 0.25},
                    {"client": "b", "outcome": "dropped", "examples": 0, "bytes_up": 0, "bytes_down": 0,
                     "loss": null, "train_seconds": 0.0},
                ],
                "seconds": {"select": 0, "broadcast": 0, "train": 0, "collect": 0, "aggregate": 0, "evaluate": 0,
                            "total": 1.5},
                "adapter": digest, "privacy": {"epsilon": 0.5 * (index + 1) as f64, "noise_multiplier": 1.0, "clip_norm": 1.0},
            })
        };
        json!({
            "status": {"state": "completed"}, "versions": {"fedpeft": "0.1.0"},
            "rounds": accuracies.iter().enumerate().map(round).collect::<Vec<_>>(),
            "totals": {"seconds": 1.5 * accuracies.len() as f64, "adapter_bytes": 1 << 20, "backbone_values": 1000},
        })
        .to_string()
    }

    #[test]
    fn a_report_says_what_was_reached_for_how_much() {
        let outcome = Outcome::parse(report(&[0.3, 0.5, 0.4]).as_bytes()).unwrap().unwrap();
        assert_eq!((outcome.final_accuracy(), outcome.epsilon()), (Some(0.4), Some(1.5)));
        assert_eq!((outcome.bytes_to(0.3), outcome.bytes_to(0.45)), (Some(2 << 20), Some(4 << 20)));
        assert_eq!(outcome.bytes_to(0.6), None);
        let [first, second, _] = &outcome.rounds[..] else { panic!("not three rounds") };
        assert_eq!((first.once, first.down), (5 << 20, 1 << 20));
        assert_eq!((second.up, second.accepted, second.sampled), (1 << 20, 1, 2));
    }

    #[test]
    fn a_run_that_failed_is_its_reason() {
        let text =
            report(&[0.3]).replace(r#"{"state":"completed"}"#, r#"{"state":"failed","reason":"no quorum"}"#);
        assert_eq!(Outcome::parse(text.as_bytes()).unwrap(), Err("no quorum".to_owned()));
        assert!(Outcome::parse(b"{}").is_err());
    }
}
