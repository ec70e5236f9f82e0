//! The report of a round. Its clients are told of one by one, out of the round's own table, wherever it goes: into its
//! record, its hash and its events.

use std::{collections::BTreeSet, sync::Arc};

use fedpeft_protocol::{
    ClientId, Digest, Epoch, Round, RunId, ledger,
    round::{ClientOutcome, ClientReport, Direction, Personal, RoundReport},
    run::{Carried, RunRecord},
    subject,
};
use serde::{Serialize, Serializer};

use crate::{
    clients::{Answer, Clients},
    members::Member,
    round::RoundState,
    secure::Secure,
};

/// A report that tells of clients one by one.
pub(crate) type Report = RoundReport<Told>;

/// The clients of a report. Copies share them.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    /// Of a round of this owner.
    Here(Arc<Outcomes>),
    /// As an earlier owner told of them.
    Before(Arc<Vec<ClientReport>>),
}

/// What became of the clients of a round.
#[derive(Debug)]
pub(crate) struct Outcomes {
    run: RunId,
    round: Round,
    clients: Arc<Clients>,
    /// Those that go on training.
    carried: BTreeSet<ClientId>,
    /// What is said of the others that have not answered.
    left_out: ClientOutcome,
}

impl Told {
    /// Every client, by name.
    pub fn iter(&self) -> Box<dyn ExactSizeIterator<Item = ClientReport> + Send + '_> {
        match self {
            Self::Here(outcomes) => Box::new(outcomes.iter()),
            Self::Before(reports) => Box::new(reports.iter().cloned()),
        }
    }
}

impl Serialize for Told {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// A report as an earlier owner stored it.
pub(crate) fn read(mut report: RoundReport) -> Report {
    let clients = std::mem::take(&mut report.clients);
    report.with_clients(Told::Before(Arc::new(clients)))
}

impl RoundState {
    /// The report of the round, before evaluation: it turned the adapter of `before` into `adapter`, and what its factors do
    /// not hold into `residual`. `carried` are the clients whose updates count later.
    pub fn report(
        &self,
        before: &RunRecord,
        carried: &[Carried],
        (adapter, residual): (Digest, Option<Digest>),
    ) -> Report {
        let accepted = || self.clients.accepted();
        let examples: u64 = accepted().map(|accepted| accepted.examples).sum();
        let weighted: f64 = accepted().map(|accepted| accepted.loss * accepted.examples as f64).sum();
        let (loss, accuracy) = self.personal();
        let bytes = self.clients.all_bytes();
        let told = Told::Here(Arc::new(Outcomes {
            run: before.run.clone(),
            round: self.open.round,
            clients: self.clients.clone(),
            carried: carried.iter().map(|carried| carried.client.clone()).collect(),
            // Why those that have not answered are not waited for.
            left_out: match self.is_full(&before.spec) {
                true => ClientOutcome::Surplus,
                false => ClientOutcome::Dropped,
            },
        }));
        let mut report = RoundReport {
            round: self.open.round,
            loss,
            accuracy,
            train_loss: weighted / examples.max(1) as f64,
            bytes_up: bytes.sum(Direction::Up),
            bytes_down: bytes.sum(Direction::Down),
            bytes_by_kind: bytes.by_kind(),
            payload_by_kind: self.clients.payload().by_kind(),
            clients: told.clone(),
            privacy: None,
            secure: self.secure.as_ref().map(Secure::report),
            seconds: self.seconds,
            previous: before.adapter,
            adapter,
            residual,
            epoch: before.epoch,
            ledger: before.ledger,
        };
        report.ledger = ledger::chain(before.ledger, &report, told.iter());
        report
    }

    /// Mean loss and accuracy of the clients' own models, weighted by the examples they hold back; where none says, none.
    fn personal(&self) -> (Option<f64>, Option<f64>) {
        let own = || self.clients.accepted().filter_map(|accepted| accepted.personal());
        let mean = |figure: fn(&Personal) -> Option<f64>| {
            let weighted = own().filter_map(|own| Some((figure(&own)?, own.examples as f64)));
            let (sum, weight) = weighted.fold((0.0, 0.0), |(sum, weight), (value, examples)| {
                (sum + value * examples, weight + examples)
            });
            (weight > 0.0).then(|| sum / weight)
        };
        (mean(|own| Some(own.loss)), mean(|own| own.accuracy))
    }
}

impl Outcomes {
    fn iter(&self) -> impl ExactSizeIterator<Item = ClientReport> {
        self.clients.iter().map(|(client, member, answer)| self.report(client, &member, answer))
    }

    fn report(&self, client: &ClientId, member: &Member, answer: Option<&Answer>) -> ClientReport {
        let bytes = self.clients.bytes(client);
        let mut report = ClientReport {
            client: client.clone(),
            outcome: match self.carried.contains(client) {
                true => ClientOutcome::Training,
                false => self.left_out.clone(),
            },
            examples: 0,
            bytes_up: bytes.sum(Direction::Up),
            bytes_down: bytes.sum(Direction::Down),
            bytes_by_kind: bytes.by_kind(),
            loss: None,
            train_seconds: 0.0,
            personal: None,
            updates: 0,
            epsilon: None,
        };
        match answer {
            None => {}
            Some(Answer::Rejected(reason)) => {
                report.outcome = ClientOutcome::Rejected { reason: reason.to_string() };
            }
            Some(Answer::Failed(reason)) => {
                report.outcome = ClientOutcome::Failed { reason: reason.to_string() };
            }
            Some(Answer::Accepted(accepted)) => {
                let work = member.work(accepted.stage);
                report.outcome = ClientOutcome::Accepted {
                    digest: accepted.digest,
                    update: update_name(&self.run, client, member, work),
                    weight: accepted.weight,
                    staleness: self.round - member.round,
                };
                report.examples = accepted.examples;
                report.epsilon = accepted.epsilon();
                report.loss = report.epsilon.is_none().then_some(accepted.loss);
                report.train_seconds = accepted.seconds;
                report.personal = accepted.personal();
                report.updates = accepted.updates();
            }
        }
        report
    }
}

/// The name of an update: that of the task it answers.
pub(crate) fn update_name(run: &RunId, client: &ClientId, member: &Member, work: &str) -> String {
    let (round, epoch): (Round, Epoch) = (member.round, member.epoch);
    subject::task_id(run, round, client, work, epoch)
}
