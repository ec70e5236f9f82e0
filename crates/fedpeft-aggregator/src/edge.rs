//! An edge: an aggregator that is a client of another one.
//!
//! ```text
//!   upstream broker                       broker of the edge
//!   task: aggregate ----> begin: mirror what it needs, open a round
//!                                         task: train ------> clients
//!                                         updates <---------- clients
//!                         close: the sum is in a blob and the record says so
//!   update: a sum <------ send
//! ```
//!
//! To the aggregator upstream it is a client that has the examples of all its clients; to its clients it is the
//! aggregator, with the phases, checks and records of any other. The sum it sends is exact, so that the next global
//! adapter is, to the byte, what it would be if its clients were those of the aggregator upstream.
//!
//! The task stays stored upstream until its round is over, and every process of the edge sees it; the one that has the
//! lease of the run works for it, and the others wait for the lease or the answer. The answer is decided by one write to
//! the local record, before it is sent: a crash before it folds the round again from the stored updates, a crash after it
//! sends the same bytes again.

mod begin;
mod close;
mod job;
mod mirror;
mod presence;
mod send;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fedpeft_bus::{Bus, BusError, Tasks};
use fedpeft_protocol::{ClientId, RunId, round::Task};
use fedpeft_service::{CancellationToken, now_ms};
use tokio::task::{AbortHandle, JoinSet};

use crate::drive::Workshop;

/// Longest life of a task: longer ones are as good as endless.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// Runs whose deadlines are remembered. With more, a task that comes again has all its time again.
const RUNS: usize = 1000;

/// What makes an aggregator an edge.
#[derive(Clone)]
pub struct EdgeOptions {
    /// The broker of the aggregator above.
    pub upstream: Bus,
    /// The client that it is there.
    pub client: ClientId,
    /// How its rounds go.
    pub rounds: EdgeRounds,
}

/// How the rounds of an edge go.
#[derive(Debug, Clone, PartialEq)]
pub struct EdgeRounds {
    /// Clients that must be present for the edge to offer itself, and to open a round.
    pub min_clients: u32,
    /// Updates without which it sends no sum. Default: half of the clients asked, rounded up.
    pub quorum: Option<u32>,
    /// Seconds after which a round closes. Default: nine tenths of the time that the task gives.
    pub deadline_seconds: Option<f64>,
}

impl Default for EdgeRounds {
    fn default() -> Self {
        Self { min_clients: 1, quorum: None, deadline_seconds: None }
    }
}

/// An edge, as its jobs share it.
pub(crate) struct Edge {
    pub shop: Workshop,
    /// Name of this process in leases.
    pub owner: String,
    pub upstream: Bus,
    pub client: ClientId,
    pub rounds: EdgeRounds,
}

impl Edge {
    pub fn new(shop: Workshop, owner: String, options: EdgeOptions) -> Self {
        let EdgeOptions { upstream, client, rounds } = options;
        Self { shop, owner, upstream, client, rounds }
    }

    /// Works for the aggregator upstream until `shutdown`.
    ///
    /// # Errors
    /// The upstream broker has no tasks for it, or refuses to say.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), BusError> {
        self.upstream.check_client(&self.client)?;
        let edge = Arc::new(self);
        let tasks = edge.upstream.tasks(&edge.client).await?;
        tracing::info!(client = %edge.client, upstream = edge.upstream.server(), "working for upstream");
        tokio::select! {
            () = presence::keep(&edge) => {}
            () = take(&edge, tasks, &shutdown) => {}
        }
        presence::withdraw(&edge).await;
        Ok(())
    }
}

/// A job for the newest task of a run.
struct Running {
    handle: AbortHandle,
    /// It gives back the lease before it ends.
    stop: CancellationToken,
}

/// Begins a job for every task. A newer task of a run ends the job for an older one.
async fn take(edge: &Arc<Edge>, mut tasks: Tasks, shutdown: &CancellationToken) {
    let mut jobs = JoinSet::new();
    let mut running = BTreeMap::<RunId, Running>::new();
    let mut deadlines = Deadlines::default();
    loop {
        let delivery = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = jobs.join_next() => {
                running.retain(|_, job| !job.handle.is_finished());
                continue;
            }
            delivery = tasks.next() => delivery,
        };
        match delivery {
            Ok(delivery) => match &delivery.result {
                Ok(task) => {
                    let (run, deadline) = (task.run.clone(), deadlines.of(task));
                    if let Some(older) = running.remove(&run) {
                        older.stop.cancel();
                    }
                    let stop = shutdown.child_token();
                    let handle = jobs.spawn(job::run(edge.clone(), delivery, deadline, stop.clone()));
                    running.insert(run, Running { handle, stop });
                }
                Err(error) => tracing::warn!(%error, "skipping a task that cannot be read"),
            },
            Err(error) => tracing::warn!(%error, "no task from upstream"),
        }
    }
    // They hear of the shutdown themselves, and leave their tasks to the next process.
    while jobs.join_next().await.is_some() {}
}

/// When it is too late for the newest task of each run: its lifetime after it was first seen, by our own clock.
#[derive(Default)]
struct Deadlines(BTreeMap<RunId, (String, Instant)>);

impl Deadlines {
    fn of(&mut self, task: &Task) -> Instant {
        match self.0.get(&task.run) {
            Some((name, deadline)) if *name == task.task => return *deadline,
            None if self.0.len() >= RUNS => self.0.clear(),
            _ => {}
        }
        let left = match task.lifetime_ms {
            0 => task.deadline_ms.saturating_sub(now_ms()),
            lifetime => lifetime,
        };
        let deadline = Instant::now() + Duration::from_millis(left).min(LONGEST);
        self.0.insert(task.run.clone(), (task.task.clone(), deadline));
        deadline
    }
}
