//! All runs.

use std::collections::BTreeMap;

use fedpeft_bus::Place;
use fedpeft_protocol::{RunId, event::Event};

use crate::run::Run;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Runs; the one without events for longest is forgotten first.
    pub runs: usize,
    /// Rounds per run that are shown one by one.
    pub rounds: usize,
    /// Clients per run that are shown by name; 0 shows nothing of clients.
    pub clients: usize,
}

/// What the events so far add up to.
#[derive(Debug)]
pub struct Ledger {
    limits: Limits,
    runs: BTreeMap<RunId, (Place, Run)>,
    place: Place,
    events: u64,
    pending: u64,
}

impl Ledger {
    /// A ledger of nothing.
    pub fn new(limits: Limits) -> Self {
        Self { limits, runs: BTreeMap::new(), place: Place::default(), events: 0, pending: 0 }
    }

    /// Adds the event at `place` of the stream, unless it was added already; `pending` are still to come.
    pub fn fold(&mut self, place: Place, pending: u64, event: &Event) {
        if place <= self.place {
            return;
        }
        (self.place, self.pending) = (place, pending);
        self.events += 1;
        let (last, run) = self.runs.entry(event.run.clone()).or_default();
        *last = place;
        run.fold(&event.kind, self.limits);
        if self.runs.len() > self.limits.runs {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.runs.iter().min_by_key(|(_, (last, _))| *last).map(|(id, _)| id.clone());
        if let Some(id) = oldest {
            tracing::info!(run = %id, kept = self.limits.runs, "run forgotten");
            self.runs.remove(&id);
        }
    }

    pub(crate) fn runs(&self) -> impl Iterator<Item = (&RunId, &Run)> {
        self.runs.iter().map(|(id, (_, run))| (id, run))
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn pending(&self) -> u64 {
        self.pending
    }
}
