//! How far a run has come, as its record and its events tell.

use std::{collections::BTreeSet, time::Duration};

use fedpeft_bus::{Bus, Change};
use fedpeft_protocol::{ClientId, Round, RunId, event::EventKind, run::RunStatus};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::world::CLIENTS;

/// A moment of a run. They follow one another, so that whoever waits for one also sees a later one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub round: Round,
    pub step: Step,
}

impl Moment {
    /// The next time that a round comes to `step`.
    pub fn next(self, step: Step) -> Self {
        let round = if self.round > 0 && self.step < step { self.round } else { self.round + 1 };
        Self { round, step }
    }
}

/// The steps of a round, in their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Its record is written, its tasks are about to be sent.
    #[default]
    Opened,
    /// Its tasks are sent; clients pull artifacts, train, upload.
    Sent,
    /// So many updates are in the sum; the commit follows the last.
    Accepted(u32),
    /// Its adapter is the global one, its evaluation is asked for.
    Committed,
    /// It is announced, clients of the next round are about to be selected.
    Closed,
}

/// What became of a run so far.
#[derive(Debug, Clone)]
pub struct State {
    pub moment: Moment,
    pub since: Instant,
    /// `None` while it is active.
    pub ended: Option<RunStatus>,
}

/// Follows one run.
pub struct Progress {
    state: watch::Receiver<State>,
    following: Vec<JoinHandle<()>>,
}

impl Progress {
    /// Follows `run` from its first event.
    pub async fn follow(bus: &Bus, run: &RunId) -> Self {
        let begun = State { moment: Moment::default(), since: Instant::now(), ended: None };
        let (sender, state) = watch::channel(begun);
        let following = vec![
            tokio::spawn(follow_events(bus.clone(), run.clone(), sender.clone())),
            tokio::spawn(follow_record(bus.clone(), run.clone(), sender)),
        ];
        Self { state, following }
    }

    /// Where it is now.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until the run has reached `moment` or has ended; `None` after `patience` without any progress.
    pub async fn reached(&self, moment: Moment, patience: Duration) -> Option<State> {
        self.until(patience, |state| state.moment >= moment || state.ended.is_some()).await
    }

    /// Waits until the run has ended; `None` after `patience` without any progress.
    pub async fn ended(&self, patience: Duration) -> Option<RunStatus> {
        self.until(patience, |state| state.ended.is_some()).await?.ended
    }

    async fn until(&self, patience: Duration, wanted: impl Fn(&State) -> bool) -> Option<State> {
        let mut states = self.state.clone();
        loop {
            let state = states.borrow_and_update().clone();
            if wanted(&state) {
                return Some(state);
            }
            tokio::time::timeout(patience, states.changed()).await.ok()?.ok()?;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.following.iter().for_each(JoinHandle::abort);
    }
}

fn advance(state: &watch::Sender<State>, moment: Moment) {
    state.send_if_modified(|state| {
        let further = moment > state.moment;
        if further {
            (state.moment, state.since) = (moment, Instant::now());
        }
        further
    });
}

/// Events say what the record does not: who has answered. A new owner tells some of them again.
async fn follow_events(bus: Bus, run: RunId, state: watch::Sender<State>) {
    let mut events = bus.events(Some(&run), true).await.unwrap();
    let mut accepted = BTreeSet::<(Round, ClientId)>::new();
    loop {
        match events.next().await.unwrap().kind {
            EventKind::RoundOpened { round, .. } => advance(&state, Moment { round, step: Step::Sent }),
            EventKind::UpdateAccepted { round, client, .. } => {
                accepted.insert((round, client));
                let count = accepted.iter().filter(|(of, _)| *of == round).count();
                let step = Step::Accepted(u32::try_from(count).unwrap().min(CLIENTS));
                advance(&state, Moment { round, step });
            }
            EventKind::RoundClosed { report } => {
                advance(&state, Moment { round: report.round, step: Step::Closed });
            }
            EventKind::Status { .. }
            | EventKind::Waiting { .. }
            | EventKind::UpdateRejected { .. }
            | EventKind::SecureStageClosed { .. }
            | EventKind::UpdatesAccepted { .. }
            | EventKind::RoundClients { .. } => {}
        }
    }
}

async fn follow_record(bus: Bus, run: RunId, state: watch::Sender<State>) {
    let records = bus.runs().await.unwrap();
    // Keys below the run's own are its rounds; the run itself is found among all.
    let mut watch = records.watch("").await.unwrap();
    loop {
        let Change::Put(entry) = watch.next().await else { continue };
        if entry.key != run.as_str() {
            continue;
        }
        let record = entry.value;
        if record.round > 0 {
            advance(&state, Moment { round: record.round, step: Step::Committed });
        }
        if let Some(open) = record.open {
            advance(&state, Moment { round: open.round, step: Step::Opened });
        }
        if record.status.is_final() {
            state.send_modify(|state| state.ended = Some(record.status));
        }
    }
}
