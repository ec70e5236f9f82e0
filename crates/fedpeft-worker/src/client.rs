//! The life of one hosted client: wait for a task, wait for its turn, do it, answer.

use std::{future::Future, sync::Arc, time::Duration};

use fedpeft_bus::{BusError, TaskDelivery};
use fedpeft_protocol::round::{Task, Update};
use fedpeft_service::{CancellationToken, now_ms};

use crate::{
    engine::Engine,
    metrics::Metrics,
    roster::Hosted,
    task::{Answer, Workshop},
};

/// A third of the time after which the broker would deliver a task again.
const RENEWAL: Duration = Duration::from_secs(10);
/// Before a task is tried again whose update the broker did not take.
const RETRY: Duration = Duration::from_secs(5);

/// What all clients of a process share.
pub(crate) struct Shared {
    pub workshop: Workshop,
    pub engine: Engine,
    pub metrics: Metrics,
    /// Take no further tasks.
    pub shutdown: CancellationToken,
}

/// Serves tasks of `client` until shutdown.
pub(crate) async fn run(client: Hosted, shared: Arc<Shared>) -> Result<(), BusError> {
    let mut tasks = shared.workshop.bus.tasks(&client.id).await?;
    loop {
        let delivery = tokio::select! {
            () = shared.shutdown.cancelled() => return Ok(()),
            delivery = tasks.next() => delivery?,
        };
        handle(&client, &shared, &delivery).await;
    }
}

async fn handle(client: &Hosted, shared: &Shared, delivery: &TaskDelivery) {
    let task = match &delivery.result {
        Ok(task) => task,
        Err(error) => {
            tracing::warn!(client = %client.id, %error, "skipping a task that cannot be read");
            return settle(client, delivery.ack().await);
        }
    };
    tracing::debug!(client = %client.id, run = %task.run, round = task.round, work = task.work.name(), "task");
    let answer = renewing(delivery, Box::pin(answer(client, shared, task))).await;
    let settled = match answer {
        Answer::Update(update) => publish(client, shared, task, *update, delivery).await,
        Answer::Late => {
            tracing::info!(client = %client.id, run = %task.run, round = task.round, "skipping a task past its deadline");
            delivery.ack().await
        }
        Answer::HandBack => delivery.retry(Duration::ZERO).await,
    };
    settle(client, settled);
}

async fn answer(client: &Hosted, shared: &Shared, task: &Task) -> Answer {
    if now_ms() >= task.deadline_ms {
        return Answer::Late;
    }
    let turn = tokio::select! {
        // Whoever still waits when the process is told to stop would not get a turn in time.
        biased;
        () = shared.shutdown.cancelled() => return Answer::HandBack,
        turn = shared.engine.turn() => turn,
    };
    shared.workshop.perform(client, task, &turn).await
}

/// The task is acknowledged after the broker has stored the update, never before.
async fn publish(
    client: &Hosted,
    shared: &Shared,
    task: &Task,
    update: Update,
    delivery: &TaskDelivery,
) -> Result<(), BusError> {
    let bus = &shared.workshop.bus;
    let published =
        renewing(delivery, Box::pin(bus.publish_update(&task.run, task.round, &client.id, &update))).await;
    match published {
        Ok(measured) => {
            shared.metrics.answered(task.work.name(), &update.outcome);
            tracing::info!(
                client = %client.id, run = %task.run, round = task.round,
                outcome = update.outcome.name(), bytes = measured.total, "answered"
            );
            delivery.ack().await
        }
        Err(error) => {
            tracing::warn!(client = %client.id, run = %task.run, round = task.round, %error, "update not published");
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
