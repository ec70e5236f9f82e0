//! What the disturbed run came to, beside the undisturbed one.

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_protocol::{
    ClientId, Digest, Round,
    ledger::{self, Checked},
    round::{ClientOutcome, RoundReport},
    run::RunView,
};
use serde::Serialize;

/// The comparison of two runs of one specification.
#[derive(Debug, Serialize)]
pub struct Verdict {
    pub run: String,
    /// What the ledger of the disturbed run holds.
    pub ledger: Option<Checked>,
    pub adapter: Digest,
    /// What `fedpeft run verify` found.
    pub verified: Option<serde_json::Value>,
    /// Updates that count in the undisturbed run only.
    pub lost: BTreeSet<(Round, ClientId)>,
    /// Updates that count more than once in the disturbed run.
    pub twice: BTreeSet<(Round, ClientId)>,
    /// Everything that is not as it should be, in words.
    pub problems: Vec<String>,
}

/// An accepted update: its digest, its weight, and how many rounds old it was.
type Accepted = (Digest, u64, Round);

/// Compares a run with the same run without faults.
pub fn compare(calm: &RunView, disturbed: &RunView) -> Verdict {
    let mut problems = Vec::new();
    let ledger = ledger::check(disturbed).map_err(|error| problems.push(format!("ledger: {error}"))).ok();
    if let Err(error) = ledger::check(calm) {
        problems.push(format!("ledger of the undisturbed run: {error}"));
    }
    if disturbed.record.adapter != calm.record.adapter {
        let (found, expected) = (disturbed.record.adapter, calm.record.adapter);
        problems.push(format!("the final adapter is {found}, not {expected}"));
    }
    if disturbed.rounds.len() != calm.rounds.len() {
        let (found, expected) = (disturbed.rounds.len(), calm.rounds.len());
        problems.push(format!("{found} rounds, not {expected}"));
    }
    let adapters: BTreeSet<_> = calm.rounds.iter().map(|report| report.adapter).collect();
    if adapters.len() != calm.rounds.len() {
        problems.push("rounds that learn nothing prove nothing".into());
    }
    for (calm, disturbed) in calm.rounds.iter().zip(&disturbed.rounds) {
        if disturbed.adapter != calm.adapter {
            problems.push(format!("round {}: the adapter is another one", calm.round));
        }
        let (expected, found) = (accepted(calm), accepted(disturbed));
        if expected != found && expected.keys().eq(found.keys()) {
            problems.push(format!("round {}: updates of the same clients differ", calm.round));
        }
    }
    let (expected, found) = (all(calm), all(disturbed));
    let lost: BTreeSet<_> = expected.keys().filter(|key| !found.contains_key(key)).cloned().collect();
    let twice: BTreeSet<_> =
        found.iter().filter(|(_, count)| **count > 1).map(|(key, _)| key.clone()).collect();
    problems.extend(lost.iter().map(|(round, client)| format!("round {round}: {client} is lost")));
    problems.extend(twice.iter().map(|(round, client)| format!("round {round}: {client} counts twice")));
    let (run, adapter) = (disturbed.record.run.to_string(), disturbed.record.adapter);
    Verdict { run, ledger, adapter, verified: None, lost, twice, problems }
}

fn accepted(report: &RoundReport) -> BTreeMap<&ClientId, Accepted> {
    let accepted = report.clients.iter().filter_map(|client| match &client.outcome {
        ClientOutcome::Accepted { digest, weight, staleness, .. } => {
            Some((&client.client, (*digest, *weight, *staleness)))
        }
        _ => None,
    });
    accepted.collect()
}

/// How often each client's update of each round counts.
fn all(view: &RunView) -> BTreeMap<(Round, ClientId), u32> {
    let mut counts = BTreeMap::new();
    for report in &view.rounds {
        for client in &report.clients {
            if matches!(client.outcome, ClientOutcome::Accepted { .. }) {
                *counts.entry((report.round, client.client.clone())).or_default() += 1;
            }
        }
    }
    counts
}
