//! The ledger of a run: which updates are in the global adapter, each with its weight, none twice.
//!
//! Every committed round has an entry for each update in its sum. The entries of a round, with the adapters before
//! and after it, are hashed together with the hash of the rounds before; the last hash is in the run record, which
//! is changed by compare-and-set only. Who knows the record can thus check every report.

use std::collections::BTreeMap;

use crate::{
    ClientId, Digest, Round,
    round::{ClientOutcome, RoundReport},
    run::RunView,
};

/// The ledger of a run without rounds: the digest of no bytes.
pub fn empty() -> Digest {
    Digest::of([])
}

/// The ledger after `report`'s round, where `before` is the one before it: SHA-256 over lines of text, one field
/// a line: `before`, round, adapter before, adapter after, and for each accepted update in the order of the
/// report its name, client, digest, weight and staleness.
pub fn extend(before: Digest, report: &RoundReport) -> Digest {
    use std::fmt::Write as _;
    let mut text = format!("{before}\n{}\n{}\n{}\n", report.round, report.previous, report.adapter);
    for (client, digest, update, weight, staleness) in accepted(report) {
        // Writing to a string does not fail.
        let _ = write!(text, "{update}\n{client}\n{digest}\n{weight}\n{staleness}\n");
    }
    Digest::of(text)
}

type Entry<'a> = (&'a ClientId, &'a Digest, &'a str, u64, Round);

fn accepted(report: &RoundReport) -> impl Iterator<Item = Entry<'_>> {
    report.clients.iter().filter_map(|client| match &client.outcome {
        ClientOutcome::Accepted { digest, update, weight, staleness } => {
            Some((&client.client, digest, update.as_str(), *weight, *staleness))
        }
        _ => None,
    })
}

/// What a checked ledger holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Checked {
    /// Committed rounds.
    pub rounds: Round,
    /// Updates in the global adapter.
    pub updates: u64,
    /// Sum of their weights.
    pub weight: u64,
}

/// A ledger that does not add up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// A committed round has no report, or two.
    #[error("round {expected} has no report: the reports go on with round {found}")]
    Gap {
        /// Round that should have been next.
        expected: Round,
        /// Round that was.
        found: Round,
    },
    /// The reports end before the record does.
    #[error("the run has {committed} committed rounds, {reported} of them have a report")]
    Missing {
        /// Rounds of the record.
        committed: Round,
        /// Rounds with a report.
        reported: Round,
    },
    /// An update is in the sum twice.
    #[error("update {update} counts in round {first} and again in round {again}")]
    Twice {
        /// Its name.
        update: String,
        /// Where it counts first.
        first: Round,
        /// Where it counts again.
        again: Round,
    },
    /// A round does not begin with the adapter that the one before ended with.
    #[error("round {round} began with adapter {began}, the round before ended with {ended}")]
    Broken {
        /// The round.
        round: Round,
        /// What it began with.
        began: Digest,
        /// What it should have begun with.
        ended: Digest,
    },
    /// A report was changed after its commit, or never committed.
    #[error("round {round}: the ledger's hash is {found}, its entries give {expected}")]
    Hash {
        /// The round.
        round: Round,
        /// The hash in the report or record.
        found: Digest,
        /// The hash of its entries.
        expected: Digest,
    },
}

/// Checks the ledger of a run: rounds without gaps, adapters that follow one another, no update twice, and the
/// hashes of all reports and the record.
pub fn check(view: &RunView) -> Result<Checked, LedgerError> {
    let mut seen: BTreeMap<&str, Round> = BTreeMap::new();
    let (mut hash, mut adapter) = (empty(), None);
    let mut checked = Checked { rounds: 0, updates: 0, weight: 0 };
    for report in &view.rounds {
        let round = report.round;
        if round != checked.rounds + 1 {
            return Err(LedgerError::Gap { expected: checked.rounds + 1, found: round });
        }
        if let Some(ended) = adapter.filter(|ended| *ended != report.previous) {
            return Err(LedgerError::Broken { round, began: report.previous, ended });
        }
        for (_, _, update, weight, _) in accepted(report) {
            if let Some(first) = seen.insert(update, round) {
                return Err(LedgerError::Twice { update: update.to_owned(), first, again: round });
            }
            checked.updates += 1;
            checked.weight = checked.weight.saturating_add(weight);
        }
        hash = extend(hash, report);
        if hash != report.ledger {
            return Err(LedgerError::Hash { round, found: report.ledger, expected: hash });
        }
        adapter = Some(report.adapter);
        checked.rounds = round;
    }
    let record = &view.record;
    if record.round != checked.rounds {
        return Err(LedgerError::Missing { committed: record.round, reported: checked.rounds });
    }
    if record.ledger != hash {
        return Err(LedgerError::Hash { round: record.round, found: record.ledger, expected: hash });
    }
    if let Some(ended) = adapter.filter(|ended| *ended != record.adapter) {
        return Err(LedgerError::Broken { round: record.round, began: record.adapter, ended });
    }
    Ok(checked)
}
