//! The life of one hosted client: wait for a task, wait for its turn, do it, answer.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use fedpeft_bus::{BusError, TaskDelivery};
use fedpeft_protocol::round::{Task, Update};
use fedpeft_trace::{Instrument, span};

use crate::{
    faults::Faults,
    metrics::Metrics,
    roster::Hosted,
    seen::Seen,
    task::{Answer, Assignment, Held, Workshop},
};

/// A third of the time after which the broker would deliver a task again.
const RENEWAL: Duration = Duration::from_secs(4);
/// Before a task is tried again whose update the broker did not take.
const RETRY: Duration = Duration::from_secs(5);

/// What all clients of a process share.
pub(crate) struct Shared {
    pub workshop: Workshop,
    pub metrics: Metrics,
    /// Whether tasks may ask for simulated faults.
    pub simulate_faults: bool,
}

/// Serves tasks of `client` until shutdown.
pub(crate) async fn run(client: Hosted, shared: Arc<Shared>) -> Result<(), BusError> {
    let mut tasks = shared.workshop.bus.tasks(&client.id).await?;
    let mut seen = Seen::default();
    loop {
        let delivery = tokio::select! {
            biased;
            () = shared.workshop.shutdown.cancelled() => return Ok(()),
            delivery = tasks.next() => delivery?,
        };
        handle(&client, &shared, &mut seen, &delivery).await;
    }
}

async fn handle(client: &Hosted, shared: &Shared, seen: &mut Seen, delivery: &TaskDelivery) {
    let task = match &delivery.result {
        Ok(task) => task,
        Err(error) => {
            tracing::warn!(client = %client.id, %error, "skipping a task that cannot be read");
            return settle(client, delivery.ack().await);
        }
    };
    tracing::debug!(client = %client.id, run = %task.run, round = task.round, work = task.work.name(), "task");
    if !seen.admit(task) {
        tracing::info!(client = %client.id, run = %task.run, round = task.round, "skipping a task of the past");
        return settle(client, delivery.ack().await);
    }
    // It was under way to us when we were done with it, or the broker was restarted since. One that is sent anew is
    // done anew.
    if seen.has_answered(task, delivery.sequence) {
        return settle(client, delivery.ack().await);
    }
    let faults = if shared.simulate_faults { Faults::of(task, &client.id) } else { Faults::default() };
    if faults.drops_out {
        tracing::info!(client = %client.id, run = %task.run, round = task.round, "simulated drop-out");
        return settle(client, delivery.ack().await);
    }
    let assignment = Assignment { client, task, deadline: seen.deadline(task), faults };
    let span = span!(
        "task", otel.kind = "consumer", fedpeft.run = %task.run, fedpeft.round = task.round,
        fedpeft.client = %client.id, fedpeft.work = task.work.name()
    );
    delivery.origin.adopt(&span);
    let work = async {
        if Instant::now() >= assignment.deadline {
            return late(client, task, delivery).await;
        }
        match renewing(delivery, Box::pin(shared.workshop.answer(&assignment))).await {
            Answer::Update(update, held) => {
                publish(client, shared, seen, task, *update, held, delivery).await
            }
            Answer::Late => late(client, task, delivery).await,
            Answer::HandBack => delivery.retry(Duration::ZERO).await,
        }
    };
    settle(client, work.instrument(span).await);
}

async fn late(client: &Hosted, task: &Task, delivery: &TaskDelivery) -> Result<(), BusError> {
    tracing::info!(client = %client.id, run = %task.run, round = task.round, "skipping a task past its deadline");
    delivery.ack().await
}

/// The task is acknowledged after the broker has stored the update, never before.
async fn publish(
    client: &Hosted,
    shared: &Shared,
    seen: &mut Seen,
    task: &Task,
    update: Update,
    mut held: Held<'_>,
    delivery: &TaskDelivery,
) -> Result<(), BusError> {
    let Workshop { bus, abort, .. } = &shared.workshop;
    let publish = bus.publish_update(&task.run, task.round, &client.id, &update);
    let publish = publish.instrument(span!("publish", otel.kind = "producer"));
    let published = tokio::select! {
        published = renewing(delivery, Box::pin(publish)) => published,
        () = abort.cancelled() => {
            held.saved().await;
            return delivery.retry(Duration::ZERO).await;
        }
    };
    match published {
        Ok(measured) => {
            shared.metrics.answered(task.work.name(), &update.outcome);
            tracing::info!(
                client = %client.id, run = %task.run, round = task.round,
                outcome = update.outcome.name(), bytes = measured.total, "answered"
            );
            seen.answer(task, delivery.sequence);
            let settled = delivery.ack().await;
            held.sent().await;
            settled
        }
        Err(error) => {
            tracing::warn!(client = %client.id, run = %task.run, round = task.round, %error, "update not published");
            held.saved().await;
            delivery.retry(RETRY).await
        }
    }
}

/// Tells the broker that the task is in progress, for as long as `work` takes.
async fn renewing<T>(delivery: &TaskDelivery, mut work: impl Future<Output = T> + Unpin) -> T {
    loop {
        match tokio::time::timeout(RENEWAL, &mut work).await {
            Ok(done) => return done,
            Err(_) => {
                if let Err(error) = delivery.progress().await {
                    tracing::warn!(%error, "task not renewed");
                }
            }
        }
    }
}

/// An acknowledgement that is lost costs a repetition, whose update the broker drops.
fn settle(client: &Hosted, result: Result<(), BusError>) {
    if let Err(error) = result {
        tracing::warn!(client = %client.id, %error, "task not settled");
    }
}
