//! A round in progress: what its owner holds in memory. All of it can be folded again from the run record and
//! the stream of updates.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fedpeft_bus::Revision;
use fedpeft_protocol::{
    ClientId, Digest, Round, RunId, ledger,
    round::{ClientOutcome, ClientReport, Direction, PhaseSeconds, RoundReport},
    run::{OpenRound, RunRecord, RunSpec},
};
use fedpeft_strategy::Accumulator;

use crate::{drive::Drive, ledger::Ledger, stop::Stop};

/// A client's answer to its task. The first one counts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// Its update is in the sum.
    Accepted(Accepted),
    /// Its update was refused.
    Rejected(String),
    /// It could not do its task.
    Failed(String),
}

/// An update that is in the sum.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Accepted {
    /// Name of the update.
    pub update: String,
    pub digest: Digest,
    pub examples: u64,
    pub loss: f64,
    pub seconds: f64,
    /// Whether its adapter came as a blob, which is deleted once the round is committed.
    pub blob: bool,
}

/// Key of a round's report.
pub(crate) fn report_key(run: &RunId, round: Round) -> String {
    format!("{run}.{round}")
}

/// A round in progress.
pub(crate) struct RoundState {
    /// Its durable part.
    pub open: OpenRound,
    /// Answers so far.
    pub answers: BTreeMap<ClientId, Answer>,
    /// Bytes so far.
    pub ledger: Ledger,
    /// Revision of the report that an earlier attempt at this round left, if one did.
    pub report: Option<Revision>,
    /// Whether this owner took the round over in progress.
    pub taken_over: bool,
    /// Phases so far.
    pub seconds: PhaseSeconds,
    /// When the round began, for this owner.
    pub started: Instant,
    /// When its last task went out.
    pub sent: Instant,
    /// When the last update was taken.
    pub last_taken: Instant,
    /// Time spent adding updates.
    pub folding: Duration,
    sum: Arc<Mutex<Accumulator>>,
}

impl RoundState {
    /// A round without answers.
    pub async fn new(drive: &Drive<'_>, open: OpenRound, started: Instant) -> Result<Self, Stop> {
        let sum = Accumulator::new(drive.model.layout.clone()).map_err(|e| Stop::Failed(e.to_string()))?;
        let report = drive.reports.get(&report_key(&drive.record.run, open.round)).await?;
        Ok(Self {
            open,
            answers: BTreeMap::new(),
            ledger: Ledger::default(),
            report: report.map(|(_, revision)| revision),
            taken_over: false,
            seconds: PhaseSeconds::default(),
            started,
            sent: started,
            last_taken: started,
            folding: Duration::ZERO,
            sum: Arc::new(Mutex::new(sum)),
        })
    }

    /// When the round closes with the updates it has.
    pub fn deadline_ms(&self, spec: &RunSpec) -> u64 {
        // A conversion of floats to integers saturates.
        self.open.opened_ms.saturating_add((spec.round_deadline_seconds * 1000.0) as u64)
    }

    /// Examples that a client declared when it was sampled; nothing for a client outside the cohort.
    pub fn declared(&self, client: &ClientId) -> Option<u64> {
        let member = self.open.cohort.iter().position(|member| member == client)?;
        Some(self.open.examples.get(member).copied().unwrap_or(0))
    }

    /// Clients that have not answered.
    pub fn outstanding(&self) -> BTreeSet<ClientId> {
        self.open.cohort.iter().filter(|client| !self.answers.contains_key(client)).cloned().collect()
    }

    /// Updates in the sum.
    pub fn accepted(&self) -> impl Iterator<Item = &Accepted> {
        self.answers.values().filter_map(|answer| match answer {
            Answer::Accepted(accepted) => Some(accepted),
            Answer::Rejected(_) | Answer::Failed(_) => None,
        })
    }

    /// Runs `work` on the sum, on a thread that may be busy for a while.
    pub async fn with_sum<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Accumulator) -> T + Send + 'static,
    ) -> Result<T, Stop> {
        let sum = self.sum.clone();
        // A lock is poisoned by a panic only, after which the task has failed and the sum is not used.
        let working = tokio::task::spawn_blocking(move || {
            work(&mut sum.lock().unwrap_or_else(PoisonError::into_inner))
        });
        working.await.map_err(|error| Stop::Failed(format!("summing updates broke off: {error}")))
    }

    /// Says of each client that has not simply been accepted what became of it.
    pub fn shortfall(&self) -> String {
        let words = self.open.cohort.iter().filter_map(|client| match self.answers.get(client) {
            Some(Answer::Accepted(_)) => None,
            Some(Answer::Rejected(reason)) => Some(format!("{client} rejected ({reason})")),
            Some(Answer::Failed(reason)) => Some(format!("{client} failed ({reason})")),
            None => Some(format!("{client} dropped")),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// The report of the round, before evaluation: it turned the adapter of `before` into `adapter`.
    pub fn report(&self, before: &RunRecord, adapter: Digest) -> RoundReport {
        let weight: u64 = self.accepted().map(|accepted| accepted.examples).sum();
        let weighted: f64 = self.accepted().map(|accepted| accepted.loss * accepted.examples as f64).sum();
        let mut report = RoundReport {
            round: self.open.round,
            loss: None,
            accuracy: None,
            train_loss: weighted / weight.max(1) as f64,
            bytes_up: self.ledger.total(Direction::Up),
            bytes_down: self.ledger.total(Direction::Down),
            bytes_by_kind: self.ledger.by_kind(),
            clients: self.open.cohort.iter().map(|client| self.client_report(client)).collect(),
            seconds: self.seconds,
            previous: before.adapter,
            adapter,
            epoch: before.epoch,
            ledger: before.ledger,
        };
        report.ledger = ledger::extend(before.ledger, &report);
        report
    }

    fn client_report(&self, client: &ClientId) -> ClientReport {
        let mut report = ClientReport {
            client: client.clone(),
            outcome: ClientOutcome::Dropped,
            examples: 0,
            bytes_up: self.ledger.of_client(client, Direction::Up),
            bytes_down: self.ledger.of_client(client, Direction::Down),
            loss: None,
            train_seconds: 0.0,
        };
        match self.answers.get(client) {
            None => {}
            Some(Answer::Rejected(reason)) => {
                report.outcome = ClientOutcome::Rejected { reason: reason.clone() }
            }
            Some(Answer::Failed(reason)) => report.outcome = ClientOutcome::Failed { reason: reason.clone() },
            Some(Answer::Accepted(accepted)) => {
                report.outcome = ClientOutcome::Accepted {
                    digest: accepted.digest,
                    update: accepted.update.clone(),
                    weight: accepted.examples,
                    staleness: 0,
                };
                report.examples = accepted.examples;
                report.loss = Some(accepted.loss);
                report.train_seconds = accepted.seconds;
            }
        }
        report
    }
}
