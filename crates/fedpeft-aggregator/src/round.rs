//! A round in progress: what its owner holds in memory. All of it can be folded again from the run record and
//! the stream of updates.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fedpeft_bus::{Ledger, Revision};
use fedpeft_protocol::{
    ClientId, Digest, Epoch, Round, RunId, ledger,
    round::{ClientOutcome, ClientReport, Direction, Personal, PhaseSeconds, RoundReport},
    run::{Carried, ModeSpec, OpenRound, RunRecord, RunSpec},
};
use fedpeft_secagg::Server;
use fedpeft_service::now_ms;
use fedpeft_strategy::{Accumulator, Fold, Rule};

use crate::{drive::Drive, secure::Secure, spool::Heap, stop::Stop};

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
    /// Its weight in the sum.
    pub weight: u64,
    pub loss: f64,
    pub seconds: f64,
    /// What the client's own model came to, where it was asked.
    pub personal: Option<Personal>,
    /// Updates in it, if it is a sum; else 0.
    pub updates: u64,
    /// What the client says that its examples have cost, where it trains with DP-SGD and withholds its loss.
    pub epsilon: Option<f64>,
}

/// What a client of the round was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    /// The round in which it got its task: the open one, or, where rounds are buffered, an earlier one.
    pub round: Round,
    /// Fencing token of its task.
    pub epoch: Epoch,
    /// Examples that it declared: the most its update may weigh.
    pub examples: u64,
    /// The global adapter it began with.
    pub adapter: Digest,
    /// When nobody waits for it any more.
    pub deadline_ms: u64,
    /// Whether it is an edge, and answers with a sum.
    pub aggregates: bool,
}

/// Key of a round's report.
pub(crate) fn report_key(run: &RunId, round: Round) -> String {
    format!("{run}.{round}")
}

/// A round in progress.
pub(crate) struct RoundState {
    /// Its durable part.
    pub open: OpenRound,
    /// Clients whose updates count in it.
    pub members: BTreeMap<ClientId, Member>,
    /// Answers so far.
    pub answers: BTreeMap<ClientId, Answer>,
    /// Uploads that its members named, by the round they are for: forgotten once the round is committed.
    pub uploads: BTreeMap<ClientId, BTreeSet<Digest>>,
    /// Messages that were refused so far, by who sent them.
    pub refusals: Refusals,
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
    /// How far secure aggregation has come, where the run has it.
    pub secure: Option<Secure>,
    rule: Rule,
    updates: Arc<Mutex<Updates>>,
}

/// The accepted updates, as far as they are not yet an adapter.
pub(crate) struct Updates {
    pub fold: Fold,
    /// What the clients' control variates changed by, summed, where the strategy has them.
    pub control: Option<Accumulator>,
    /// The server of secure aggregation, where the run has that.
    pub server: Option<Server>,
    /// Those that the fold keeps.
    pub heap: Heap,
}

impl RoundState {
    /// A round without answers.
    pub async fn new(drive: &Drive<'_>, open: OpenRound, started: Instant) -> Result<Self, Stop> {
        let rule = drive.rule()?;
        let fold = Fold::new(rule, drive.model.layout.clone()).map_err(|e| Stop::Failed(e.to_string()))?;
        let control = drive.record.control.map(|_| Accumulator::new(drive.model.layout.clone())).transpose();
        let control = control.map_err(|error| Stop::Failed(error.to_string()))?;
        let secure = Secure::open(drive, &open)?;
        let server = secure.as_ref().map(|secure| Server::new(secure.session.clone()));
        let report = drive.reports.get(&report_key(&drive.record.run, open.round)).await?;
        Ok(Self {
            members: members(drive.record, &open),
            open,
            answers: BTreeMap::new(),
            uploads: BTreeMap::new(),
            refusals: Refusals::default(),
            ledger: Ledger::default(),
            report: report.map(|(_, revision)| revision),
            taken_over: false,
            seconds: PhaseSeconds::default(),
            started,
            sent: started,
            last_taken: started,
            folding: Duration::ZERO,
            secure,
            rule,
            updates: Arc::new(Mutex::new(Updates { fold, control, server, heap: Heap::default() })),
        })
    }

    /// When the round closes with the updates it has.
    pub fn deadline_ms(&self, spec: &RunSpec) -> u64 {
        deadline_ms(&self.open, spec)
    }

    /// How many clients have not answered.
    pub fn waits_for(&self) -> usize {
        // Only members answer.
        self.members.len() - self.answers.len()
    }

    /// Clients that have not answered.
    pub fn outstanding(&self) -> BTreeSet<ClientId> {
        self.members.keys().filter(|client| !self.answers.contains_key(client)).cloned().collect()
    }

    /// Whether the round has the updates that close it.
    pub fn is_full(&self, spec: &RunSpec) -> bool {
        self.wants(spec).is_some_and(|wanted| self.accepted().count() >= wanted)
    }

    /// Updates that close the round; a sample of any size is full when all of it has answered.
    pub fn wants(&self, spec: &RunSpec) -> Option<usize> {
        (!spec.is_poisson()).then_some(spec.target() as usize)
    }

    /// Whether no update has been taken for a while.
    pub fn is_quiet(&self) -> bool {
        self.last_taken.elapsed() >= QUIET
    }

    /// Clients whose updates still count in the next round.
    pub fn carried(&self, spec: &RunSpec) -> Vec<Carried> {
        let ModeSpec::Buffered { max_staleness, .. } = spec.mode else { return Vec::new() };
        let (next, now) = (self.open.round + 1, now_ms());
        let waiting = self.members.iter().filter(|(client, member)| {
            let in_time = now < member.deadline_ms && next - member.round <= max_staleness;
            in_time && !self.answers.contains_key(client)
        });
        let carried = waiting.map(|(client, member)| Carried {
            client: client.clone(),
            round: member.round,
            epoch: member.epoch,
            examples: member.examples,
            adapter: member.adapter,
            deadline_ms: member.deadline_ms,
        });
        carried.collect()
    }

    /// Whether a stage of secure aggregation has ended.
    pub fn has_ended_stages(&self) -> bool {
        self.open.secure.as_ref().is_some_and(|secure| !secure.closed.is_empty())
    }

    /// Updates in the sum.
    pub fn accepted(&self) -> impl Iterator<Item = &Accepted> {
        self.accepted_by().map(|(_, accepted)| accepted)
    }

    /// Updates in the sum, and whose they are.
    pub fn accepted_by(&self) -> impl Iterator<Item = (&ClientId, &Accepted)> {
        self.answers.iter().filter_map(|(client, answer)| match answer {
            Answer::Accepted(accepted) => Some((client, accepted)),
            Answer::Rejected(_) | Answer::Failed(_) => None,
        })
    }

    /// What it does with updates.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// Runs `work` on the updates here and now: what takes a millisecond takes longer on the way to another thread.
    pub fn with_updates_now<T>(&self, work: impl FnOnce(&mut Updates) -> T) -> T {
        work(&mut self.updates.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `work` on the updates, on a thread that may be busy for a while.
    pub async fn with_updates<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Updates) -> T + Send + 'static,
    ) -> Result<T, Stop> {
        let updates = self.updates.clone();
        // A lock is poisoned by a panic only, after which the task has failed and the updates are not used.
        let working = tokio::task::spawn_blocking(move || {
            work(&mut updates.lock().unwrap_or_else(PoisonError::into_inner))
        });
        working.await.map_err(|error| Stop::Failed(format!("summing updates broke off: {error}")))
    }

    /// Says of each client that has not simply been accepted what became of it.
    pub fn shortfall(&self) -> String {
        let words = self.members.keys().filter_map(|client| match self.answers.get(client) {
            Some(Answer::Accepted(_)) => None,
            Some(Answer::Rejected(reason)) => Some(format!("{client} rejected ({reason})")),
            Some(Answer::Failed(reason)) => Some(format!("{client} failed ({reason})")),
            None => Some(format!("{client} dropped")),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// The report of the round, before evaluation: it turned the adapter of `before` into `adapter`, and what its factors do
    /// not hold into `residual`. `carried` are the clients whose updates count later.
    pub fn report(
        &self,
        before: &RunRecord,
        carried: &[Carried],
        (adapter, residual): (Digest, Option<Digest>),
    ) -> RoundReport {
        let examples: u64 = self.accepted().map(|accepted| accepted.examples).sum();
        let weighted: f64 = self.accepted().map(|accepted| accepted.loss * accepted.examples as f64).sum();
        // Why those that have not answered are not waited for.
        let left_out =
            if self.is_full(&before.spec) { ClientOutcome::Surplus } else { ClientOutcome::Dropped };
        let carried: BTreeSet<_> = carried.iter().map(|carried| &carried.client).collect();
        let clients = self.members.keys().map(|client| {
            let goes_on = carried.contains(client);
            self.client_report(client, if goes_on { ClientOutcome::Training } else { left_out.clone() })
        });
        let (loss, accuracy) = self.personal();
        let mut report = RoundReport {
            round: self.open.round,
            loss,
            accuracy,
            train_loss: weighted / examples.max(1) as f64,
            bytes_up: self.ledger.total(Direction::Up),
            bytes_down: self.ledger.total(Direction::Down),
            bytes_by_kind: self.ledger.by_kind(),
            payload_by_kind: self.ledger.payload_by_kind(),
            clients: clients.collect(),
            privacy: None,
            secure: self.secure.as_ref().map(Secure::report),
            seconds: self.seconds,
            previous: before.adapter,
            adapter,
            residual,
            epoch: before.epoch,
            ledger: before.ledger,
        };
        report.ledger = ledger::extend(before.ledger, &report);
        report
    }

    /// Mean loss and accuracy of the clients' own models, weighted by the examples they hold back; where none says, none.
    fn personal(&self) -> (Option<f64>, Option<f64>) {
        let own = || self.accepted().filter_map(|accepted| accepted.personal);
        let mean = |figure: fn(&Personal) -> Option<f64>| {
            let weighted = own().filter_map(|own| Some((figure(&own)?, own.examples as f64)));
            let (sum, weight) = weighted.fold((0.0, 0.0), |(sum, weight), (value, examples)| {
                (sum + value * examples, weight + examples)
            });
            (weight > 0.0).then(|| sum / weight)
        };
        (mean(|own| Some(own.loss)), mean(|own| own.accuracy))
    }

    fn client_report(&self, client: &ClientId, unanswered: ClientOutcome) -> ClientReport {
        let mut report = ClientReport {
            client: client.clone(),
            outcome: unanswered,
            examples: 0,
            bytes_up: self.ledger.of_client(client, Direction::Up),
            bytes_down: self.ledger.of_client(client, Direction::Down),
            bytes_by_kind: self.ledger.of_client_by_kind(client),
            loss: None,
            train_seconds: 0.0,
            personal: None,
            updates: 0,
            epsilon: None,
        };
        match self.answers.get(client) {
            None => {}
            Some(Answer::Rejected(reason)) => {
                report.outcome = ClientOutcome::Rejected { reason: reason.clone() };
            }
            Some(Answer::Failed(reason)) => report.outcome = ClientOutcome::Failed { reason: reason.clone() },
            Some(Answer::Accepted(accepted)) => {
                report.outcome = ClientOutcome::Accepted {
                    digest: accepted.digest,
                    update: accepted.update.clone(),
                    weight: accepted.weight,
                    staleness: self.staleness(client),
                };
                report.examples = accepted.examples;
                report.loss = accepted.epsilon.is_none().then_some(accepted.loss);
                report.epsilon = accepted.epsilon;
                report.train_seconds = accepted.seconds;
                report.personal = accepted.personal;
                report.updates = accepted.updates;
            }
        }
        report
    }

    /// Rounds since a client of this one began.
    pub fn staleness(&self, client: &ClientId) -> Round {
        self.members.get(client).map_or(0, |member| self.open.round - member.round)
    }
}

fn members(record: &RunRecord, open: &OpenRound) -> BTreeMap<ClientId, Member> {
    let edges: BTreeSet<_> = open.edges.iter().collect();
    let sampled = open.cohort.iter().enumerate().map(|(at, client)| {
        let member = Member {
            round: open.round,
            epoch: open.epoch,
            examples: open.examples.get(at).copied().unwrap_or(0),
            adapter: record.adapter,
            deadline_ms: deadline_ms(open, &record.spec),
            aggregates: edges.contains(client),
        };
        (client.clone(), member)
    });
    let carried = record.carried.iter().map(|carried| {
        let Carried { client, round, epoch, examples, adapter, deadline_ms } = carried.clone();
        // Sums are for synchronous rounds.
        (client, Member { round, epoch, examples, adapter, deadline_ms, aggregates: false })
    });
    sampled.chain(carried).collect()
}

/// When a round closes with the updates it has.
fn deadline_ms(open: &OpenRound, spec: &RunSpec) -> u64 {
    // A conversion of floats to integers saturates.
    open.opened_ms.saturating_add((spec.round_deadline_seconds * 1000.0) as u64)
}

/// Without an update for so long, it is worth a look at who is there.
const QUIET: Duration = Duration::from_secs(2);
/// How many refused messages of one client are told of in one round.
const TOLD: u32 = 16;
/// Names of senders that are kept apart.
const SENDERS: usize = 4096;

/// Counts refused messages, so that nobody can flood logs and events.
#[derive(Debug, Default)]
pub(crate) struct Refusals(BTreeMap<ClientId, u32>);

impl Refusals {
    /// Counts a refused message of `client`; says whether it is one too many.
    pub fn is_flood(&mut self, client: &ClientId) -> bool {
        if self.0.len() >= SENDERS && !self.0.contains_key(client) {
            return true;
        }
        let count = self.0.entry(client.clone()).or_default();
        *count = count.saturating_add(1);
        *count > TOLD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_are_noticed() {
        let mut refusals = Refusals::default();
        let client = |number: usize| ClientId::new(format!("c{number}")).unwrap();
        assert!((0..TOLD).all(|_| !refusals.is_flood(&client(0))));
        assert!(refusals.is_flood(&client(0)));
        assert!((1..SENDERS).all(|number| !refusals.is_flood(&client(number))));
        assert!(refusals.is_flood(&client(SENDERS)));
    }
}
