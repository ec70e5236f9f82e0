//! The life of one hosted client: wait for a task, wait for its turn, do it, answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fedpeft_bus::{BusError, TaskDelivery};
use fedpeft_protocol::round::{Task, Update, Work};
use fedpeft_trace::{Instrument, span};

use crate::{
    faults::Faults,
    metrics::Metrics,
    roster::Hosted,
    seen::Seen,
    task::{Answer, Assignment, Held, Workshop},
};

/// Before a task is tried again whose update the broker did not take.
const RETRY: Duration = Duration::from_secs(5);
/// Before a private training is tried again of a client for which another process speaks.
const COMPANY: Duration = Duration::from_secs(2);

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
            return;
        }
    };
    tracing::debug!(client = %client.id, run = %task.run, round = task.round, work = task.work.name(), "task");
    if !seen.admit(task) {
        tracing::info!(client = %client.id, run = %task.run, round = task.round, "skipping a task of the past");
        return;
    }
    // One that is sent anew is done anew.
    if seen.has_answered(task, delivery.sequence) {
        return;
    }
    let faults = if shared.simulate_faults { Faults::of(task, &client.id) } else { Faults::default() };
    if faults.drops_out {
        tracing::info!(client = %client.id, run = %task.run, round = task.round, "simulated drop-out");
        return;
    }
    let assignment = Assignment { client, task, deadline: seen.deadline(task), faults };
    let span = span!(
        "task", otel.kind = "consumer", fedpeft.run = %task.run, fedpeft.round = task.round,
        fedpeft.client = %client.id, fedpeft.work = task.work.name()
    );
    delivery.origin.adopt(&span);
    let work = async {
        if delivery.was_found && is_answered(shared, client, task).await {
            seen.answer(task, delivery.sequence);
            return;
        }
        if Instant::now() >= assignment.deadline {
            return late(client, task);
        }
        if is_private(task) && !client.alone.is_sure() {
            tracing::info!(
                client = %client.id, run = %task.run, round = task.round,
                "private training waits until no other process has spoken for this client for a while"
            );
            delivery.retry(COMPANY);
            return;
        }
        match Box::pin(shared.workshop.answer(&assignment)).await {
            Answer::Update(update, held) => {
                publish(client, shared, seen, task, *update, held, delivery).await;
            }
            Answer::Late => late(client, task),
            // It stays where the next process finds it.
            Answer::HandBack => {}
        }
    };
    work.instrument(span).await;
}

/// Whether the client's examples are to be accounted for.
fn is_private(task: &Task) -> bool {
    matches!(&task.work, Work::Train { training, .. } if training.dp_sgd.is_some())
}

/// Whether another process of this client has answered a task that was stored before we listened, or that comes again.
async fn is_answered(shared: &Shared, client: &Hosted, task: &Task) -> bool {
    match shared.workshop.bus.is_answered(task, &client.id).await {
        Ok(is_answered) => is_answered,
        Err(error) => {
            // To do it again costs time and nothing else.
            tracing::debug!(client = %client.id, run = %task.run, round = task.round, %error, "answers not looked up");
            false
        }
    }
}

fn late(client: &Hosted, task: &Task) {
    tracing::info!(client = %client.id, run = %task.run, round = task.round, "skipping a task past its deadline");
}

/// The task is answered once the broker has stored the update, never before.
async fn publish(
    client: &Hosted,
    shared: &Shared,
    seen: &mut Seen,
    task: &Task,
    update: Update,
    mut held: Held<'_>,
    delivery: &TaskDelivery,
) {
    let Workshop { bus, abort, .. } = &shared.workshop;
    let publish = bus.publish_update(&task.run, task.round, &client.id, &update);
    let publish = publish.instrument(span!("publish", otel.kind = "producer"));
    let published = tokio::select! {
        published = publish => published,
        () = abort.cancelled() => return held.saved().await,
    };
    match published {
        Ok(measured) => {
            shared.metrics.answered(task.work.name(), &update.outcome);
            tracing::info!(
                client = %client.id, run = %task.run, round = task.round,
                outcome = update.outcome.name(), bytes = measured.total, "answered"
            );
            seen.answer(task, delivery.sequence);
            held.sent().await;
        }
        Err(error) => {
            tracing::warn!(client = %client.id, run = %task.run, round = task.round, %error, "update not published");
            held.saved().await;
            delivery.retry(RETRY);
        }
    }
}
