//! The ledger of a run: which updates are in the global adapter, each with its weight, none twice.
//!
//! Every committed round has an entry for each update in its sum. The entries of a round, with the adapters before
//! and after it, are hashed together with the hash of the rounds before; the last hash is in the run record, which
//! is changed by compare-and-set only. Who knows the record can thus check every report.

use std::{borrow::Borrow, collections::BTreeMap, fmt};

use sha2::{Digest as _, Sha256};

use crate::{
    ClientId, Digest, Round,
    round::{ClientOutcome, ClientReport, RoundReport},
    run::RunView,
};

/// The ledger of a run without rounds: the digest of no bytes.
pub fn empty() -> Digest {
    Digest::of([])
}

/// The ledger after `report`'s round, where `before` is the one before it: SHA-256 over lines of text, one field
/// a line: `before`, round, adapter before, adapter after, where there is a residual the word `residual` and its digest
/// after, of a secure round the word `secure`, the session's digest and the sum of weights, and for each accepted update in the order of the
/// report its name, client, digest, weight and staleness.
pub fn extend(before: Digest, report: &RoundReport) -> Digest {
    chain(before, report, &report.clients)
}

/// As [`extend`], of a report whose clients come one by one.
pub fn chain<C>(
    before: Digest,
    report: &RoundReport<C>,
    clients: impl IntoIterator<Item: Borrow<ClientReport>>,
) -> Digest {
    let mut lines = Lines::default();
    lines.add(format_args!("{before}\n{}\n{}\n{}\n", report.round, report.previous, report.adapter));
    if let Some(residual) = &report.residual {
        lines.add(format_args!("residual\n{residual}\n"));
    }
    if let Some(secure) = &report.secure {
        lines.add(format_args!("secure\n{}\n{}\n", secure.session, secure.weight));
    }
    for client in clients {
        if let Some((client, digest, update, weight, staleness)) = accepted(client.borrow()) {
            lines.add(format_args!("{update}\n{client}\n{digest}\n{weight}\n{staleness}\n"));
        }
    }
    Digest::from_bytes(lines.0.finalize().into())
}

/// Text as it is hashed.
#[derive(Default)]
struct Lines(Sha256);

impl Lines {
    fn add(&mut self, text: fmt::Arguments<'_>) {
        // Hashing does not fail.
        let _ = fmt::Write::write_fmt(self, text);
    }
}

impl fmt::Write for Lines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text);
        Ok(())
    }
}

type Entry<'a> = (&'a ClientId, &'a Digest, &'a str, u64, Round);

fn accepted(client: &ClientReport) -> Option<Entry<'_>> {
    match &client.outcome {
        ClientOutcome::Accepted { digest, update, weight, staleness } => {
            Some((&client.client, digest, update.as_str(), *weight, *staleness))
        }
        _ => None,
    }
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
    /// The record has another residual than the last round ended with.
    #[error("round {round} ended with {}, the record has {}", residual(*.ended), residual(*.found))]
    Residual {
        /// The round.
        round: Round,
        /// What it ended with.
        ended: Option<Digest>,
        /// What the record has.
        found: Option<Digest>,
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

fn residual(digest: Option<Digest>) -> String {
    digest.map_or("no residual".to_owned(), |digest| format!("residual {digest}"))
}

/// Checks the ledger of a run: rounds without gaps, adapters that follow one another, no update twice, and the
/// hashes of all reports and the record. An edge is not asked in every round, and its global adapters come from upstream:
/// there, rounds only have to be in order.
pub fn check(view: &RunView) -> Result<Checked, LedgerError> {
    let mut seen: BTreeMap<&str, Round> = BTreeMap::new();
    let (mut hash, mut adapter, is_edge) = (empty(), None, view.record.upstream.is_some());
    let mut checked = Checked { rounds: 0, updates: 0, weight: 0 };
    for report in &view.rounds {
        let (round, next) = (report.round, checked.rounds + 1);
        let follows = if is_edge { round >= next } else { round == next };
        if !follows {
            return Err(LedgerError::Gap { expected: next, found: round });
        }
        if let Some(ended) = adapter.filter(|ended| *ended != report.previous) {
            return Err(LedgerError::Broken { round, began: report.previous, ended });
        }
        for (_, _, update, weight, _) in report.clients.iter().filter_map(accepted) {
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
        adapter = (!is_edge).then_some(report.adapter);
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
    let ended = view.rounds.last().and_then(|report| report.residual);
    if record.residual != ended {
        return Err(LedgerError::Residual { round: record.round, ended, found: record.residual });
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelName, RunId, round::*, run::*};

    /// A run of three rounds, each with an update of `a` and `b`.
    fn view() -> RunView {
        let model = ModelRef { name: ModelName::new("m").unwrap(), version: None };
        let mut record = RunRecord {
            version: 1,
            run: RunId::new("r").unwrap(),
            spec: RunSpec::new(model, 3, 2),
            manifest: Digest::of("manifest"),
            status: RunStatus::Completed,
            round: 0,
            adapter: Digest::of("adapter 0"),
            sent: None,
            moments: None,
            control: None,
            residual: None,
            privacy: None,
            open: None,
            upstream: None,
            carried: Vec::new(),
            epoch: 1,
            ledger: empty(),
            created_ms: 0,
            updated_ms: 0,
        };
        let mut rounds = Vec::new();
        for round in 1..=3 {
            let accepted = |client: &str| ClientReport {
                client: ClientId::new(client).unwrap(),
                outcome: ClientOutcome::Accepted {
                    digest: Digest::of(format!("{client} {round}")),
                    update: format!("r/{round}/{client}/train/1"),
                    weight: 5,
                    staleness: 0,
                },
                examples: 5,
                bytes_up: 1,
                bytes_down: 1,
                bytes_by_kind: BytesByKind::new(),
                loss: Some(1.0),
                train_seconds: 1.0,
                personal: None,
                updates: 0,
                epsilon: None,
            };
            let mut report = RoundReport {
                round,
                loss: None,
                accuracy: None,
                train_loss: 1.0,
                bytes_up: 2,
                bytes_down: 2,
                bytes_by_kind: BytesByKind::new(),
                payload_by_kind: BytesByKind::new(),
                clients: vec![accepted("a"), accepted("b")],
                privacy: None,
                secure: None,
                seconds: PhaseSeconds::default(),
                previous: record.adapter,
                adapter: Digest::of(format!("adapter {round}")),
                residual: Some(Digest::of(format!("residual {round}"))),
                epoch: 1,
                ledger: empty(),
            };
            report.ledger = extend(record.ledger, &report);
            (record.round, record.adapter, record.ledger) = (round, report.adapter, report.ledger);
            record.residual = report.residual;
            rounds.push(report);
        }
        RunView { record, rounds }
    }

    fn entry(view: &mut RunView, round: usize) -> &mut ClientOutcome {
        &mut view.rounds[round].clients[0].outcome
    }

    #[test]
    fn a_good_ledger_adds_up() {
        assert_eq!(check(&view()).unwrap(), Checked { rounds: 3, updates: 6, weight: 30 });
    }

    #[test]
    fn an_edge_may_miss_rounds_and_its_adapters_come_from_elsewhere() {
        let mut edge = view();
        edge.rounds.remove(1);
        let mut hash = empty();
        for report in &mut edge.rounds {
            report.previous = Digest::of(format!("global {}", report.round));
            hash = extend(hash, report);
            report.ledger = hash;
        }
        edge.record.ledger = hash;
        assert!(matches!(check(&edge), Err(LedgerError::Gap { expected: 2, found: 3 })));
        let state = UpstreamState::Sent;
        edge.record.upstream = Some(Upstream { task: "t".into(), round: 3, epoch: 1, state });
        assert_eq!(check(&edge).unwrap(), Checked { rounds: 3, updates: 4, weight: 20 });
        edge.rounds.swap(0, 1);
        assert!(matches!(check(&edge), Err(LedgerError::Hash { .. } | LedgerError::Gap { .. })));
    }

    #[test]
    fn every_change_is_found() {
        type Case = (&'static str, fn(&mut RunView));
        let cases: [Case; 11] = [
            ("gap", |view| drop(view.rounds.remove(1))),
            ("missing", |view| drop(view.rounds.pop())),
            ("broken", |view| view.rounds[1].previous = Digest::of("other")),
            ("twice", |view| {
                let first = entry(view, 0).clone();
                *entry(view, 2) = first;
            }),
            ("hash", |view| *entry(view, 1) = ClientOutcome::Dropped),
            ("hash", |view| {
                if let ClientOutcome::Accepted { weight, .. } = entry(view, 1) {
                    *weight += 1;
                }
            }),
            ("hash", |view| {
                if let ClientOutcome::Accepted { digest, .. } = entry(view, 0) {
                    *digest = Digest::of("other");
                }
            }),
            ("hash", |view| view.record.ledger = empty()),
            ("broken", |view| view.record.adapter = Digest::of("other")),
            ("hash", |view| view.rounds[0].residual = None),
            ("residual", |view| view.record.residual = Some(Digest::of("other"))),
        ];
        for (expected, change) in cases {
            let mut changed = view();
            change(&mut changed);
            let found = match check(&changed).unwrap_err() {
                LedgerError::Gap { .. } => "gap",
                LedgerError::Missing { .. } => "missing",
                LedgerError::Twice { .. } => "twice",
                LedgerError::Broken { .. } => "broken",
                LedgerError::Residual { .. } => "residual",
                LedgerError::Hash { .. } => "hash",
            };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_consistent_forgery_fails_at_the_record() {
        let mut forged = view();
        *entry(&mut forged, 2) = ClientOutcome::Dropped;
        let before = forged.rounds[1].ledger;
        forged.rounds[2].ledger = extend(before, &forged.rounds[2]);
        assert!(matches!(check(&forged), Err(LedgerError::Hash { round: 3, .. })));
    }
}
