//! A round in progress: what its owner holds in memory. All of it can be folded again from the run record and
//! the stream of updates.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fedpeft_bus::Revision;
use fedpeft_protocol::{
    ClientId, Digest, Round, RunId,
    round::PhaseSeconds,
    run::{Carried, ModeSpec, OpenRound, RunRecord, RunSpec},
};
use fedpeft_secagg::Server;
use fedpeft_service::now_ms;
use fedpeft_strategy::{Accumulator, Fold, Rule};

use crate::{
    clients::{Answer, Clients},
    drive::Drive,
    members::Members,
    secure::Secure,
    spool::Heap,
    stop::Stop,
};

/// Key of a round's report.
pub(crate) fn report_key(run: &RunId, round: Round) -> String {
    format!("{run}.{round}")
}

/// A round in progress.
pub(crate) struct RoundState {
    /// Its durable part.
    pub open: Arc<OpenRound>,
    /// Clients whose updates count in it; shared with its report once there is one.
    pub clients: Arc<Clients>,
    /// Uploads that its members named, by the round they are for: forgotten once the round is committed.
    pub uploads: BTreeMap<ClientId, BTreeSet<Digest>>,
    /// Messages that were refused so far, by who sent them.
    pub refusals: Refusals,
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
    pub async fn new(drive: &Drive<'_>, open: Arc<OpenRound>, started: Instant) -> Result<Self, Stop> {
        let rule = drive.rule()?;
        let fold = Fold::new(rule, drive.model.layout.clone()).map_err(|e| Stop::Failed(e.to_string()))?;
        let control = drive.record.control.map(|_| Accumulator::new(drive.model.layout.clone())).transpose();
        let control = control.map_err(|error| Stop::Failed(error.to_string()))?;
        let secure = Secure::open(drive, &open)?;
        let server = secure.as_ref().map(|secure| Server::new(secure.session.clone()));
        let RunRecord { adapter, carried, spec, .. } = &**drive.record;
        let members = Members::new(&open, (*adapter, deadline_ms(&open, spec)), carried);
        let report = drive.reports.revision(&report_key(&drive.record.run, open.round)).await?;
        Ok(Self {
            clients: Arc::new(Clients::new(members)),
            open,
            uploads: BTreeMap::new(),
            refusals: Refusals::default(),
            report,
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

    /// The clients, to be changed.
    pub fn clients_mut(&mut self) -> &mut Clients {
        // Nothing is copied: it is shared when nothing is left to be changed.
        Arc::make_mut(&mut self.clients)
    }

    /// Whether the round has the updates that close it.
    pub fn is_full(&self, spec: &RunSpec) -> bool {
        self.wants(spec).is_some_and(|wanted| self.clients.accepted().count() >= wanted)
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
        let waiting = self.clients.iter().filter(|(_, member, answer)| {
            let in_time = now < member.deadline_ms && next - member.round <= max_staleness;
            in_time && answer.is_none()
        });
        let carried = waiting.map(|(client, member, _)| Carried {
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
        let words = self.clients.iter().filter_map(|(client, _, answer)| match answer {
            Some(Answer::Accepted(_)) => None,
            Some(Answer::Rejected(reason)) => Some(format!("{client} rejected ({reason})")),
            Some(Answer::Failed(reason)) => Some(format!("{client} failed ({reason})")),
            None => Some(format!("{client} dropped")),
        });
        words.collect::<Vec<_>>().join(", ")
    }
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
