//! Events of runs as Prometheus metrics.
//!
//! The state behind the metrics is a fold over the event stream from its first event, so an exporter that
//! starts again shows the same counters, and several exporters agree. What it keeps is bounded: runs, rounds
//! per run, and no label comes from a client unless some are asked for.

mod clients;
mod ledger;
mod metrics;
mod run;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fedpeft_bus::{Bus, BusError, Events};
use prometheus::Registry;

pub use ledger::{Ledger, Limits};

/// A ledger that follows the event stream.
#[derive(Clone)]
pub struct Exporter {
    ledger: Arc<Mutex<Ledger>>,
}

impl Exporter {
    /// An exporter that has seen nothing; its metrics are in `registry`.
    pub fn new(limits: Limits, registry: &Registry) -> prometheus::Result<Self> {
        let exporter = Self { ledger: Arc::new(Mutex::new(Ledger::new(limits))) };
        registry.register(Box::new(metrics::LedgerMetrics::new(exporter.clone())?))?;
        Ok(exporter)
    }

    /// Folds every event from the first one on, for ever. `caught_up` is called once, when all events that
    /// were stored at the start are in.
    pub async fn follow(&self, bus: &Bus, caught_up: impl FnOnce()) -> Result<(), BusError> {
        let mut events: Events = bus.events(None, true).await?;
        let mut caught_up = Some(caught_up);
        loop {
            if events.pending() == 0
                && let Some(caught_up) = caught_up.take()
            {
                caught_up();
            }
            let event = events.next().await?;
            self.lock().fold(events.place(), events.pending(), &event);
        }
    }

    /// A fold that panicked half-way leaves a wrong number at worst, not a broken structure.
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
