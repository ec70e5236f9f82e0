//! Numbers about this process, at `/metrics`.

use fedpeft_protocol::round::Outcome;
use prometheus::{CounterVec, IntCounterVec, IntGauge, Opts, Registry};

/// Counters of answered tasks.
pub(crate) struct Metrics {
    tasks: IntCounterVec,
    seconds: CounterVec,
}

impl Metrics {
    pub fn register(registry: &Registry, clients: usize) -> prometheus::Result<Self> {
        let tasks = Opts::new("fedpeft_worker_tasks_total", "Tasks answered, by work and outcome.");
        let tasks = IntCounterVec::new(tasks, &["work", "outcome"])?;
        let seconds = Opts::new("fedpeft_worker_compute_seconds_total", "Seconds spent computing, by work.");
        let seconds = CounterVec::new(seconds, &["work"])?;
        let hosted = IntGauge::new("fedpeft_worker_clients", "Clients hosted.")?;
        hosted.set(i64::try_from(clients).unwrap_or(i64::MAX));
        registry.register(Box::new(tasks.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(hosted))?;
        Ok(Self { tasks, seconds })
    }

    pub fn answered(&self, work: &str, outcome: &Outcome) {
        self.tasks.with_label_values(&[work, outcome.name()]).inc();
        if let Outcome::Trained { seconds, .. } | Outcome::Evaluated { seconds, .. } = outcome {
            self.seconds.with_label_values(&[work]).inc_by(*seconds);
        }
    }
}
