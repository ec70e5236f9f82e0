//! Tasks: aggregator to client.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{
        AckKind, Message,
        consumer::{AckPolicy, DeliverPolicy, pull},
    },
};
use bytes::Bytes;
use fedpeft_protocol::{
    ClientId, RunId,
    round::Task,
    subject,
    wire::{self, WireError},
};
use fedpeft_trace::Origin;
use futures::StreamExt;
use tokio::sync::watch;

use crate::{Backoff, Bus, BusError, Measured, newest::Newest, publish};

/// A task a client neither answers nor renews within this time is delivered again: so long the successor of a
/// client that died waits.
const ACK_WAIT: Duration = Duration::from_secs(12);
/// A client away for longer than this starts afresh.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);
const PATIENCE: Duration = Duration::from_secs(30);
/// Between the name of a task and the place of what replaced it, where it was sent again.
const AGAIN: &str = "/again/";

impl Bus {
    /// Sends `task` to `client`; an older task of the same run is replaced. Publishing one task twice
    /// within ten minutes stores it once.
    pub async fn publish_task(&self, task: &Task, client: &ClientId) -> Result<Measured, BusError> {
        let (what, headers, body) = message(task, client)?;
        self.publish_durably(&what, subject::task(&task.run, client), headers, body, PATIENCE).await
    }

    /// Sends `task` again, for another message has replaced it.
    pub async fn publish_task_again(
        &self,
        task: &Task,
        client: &ClientId,
        replaced_by: Option<&StoredTask>,
    ) -> Result<Measured, BusError> {
        let (what, mut headers, body) = message(task, client)?;
        // The broker still knows the name under which it was sent, and would drop it.
        let id = format!("{}{AGAIN}{}", name(task, client), replaced_by.map_or(0, |stored| stored.sequence));
        headers.insert(NATS_MESSAGE_ID, id);
        self.publish_durably(&what, subject::task(&task.run, client), headers, body, PATIENCE).await
    }

    /// What is stored for each client of `run`: its newest task, answered or not.
    pub async fn stored_tasks(&self, run: &RunId) -> Result<BTreeMap<ClientId, StoredTask>, BusError> {
        let newest = self.newest(subject::TASK_STREAM, subject::tasks_of_run(run), true).await?;
        let stored = newest.into_iter().filter_map(|Newest { message, sequence }| {
            let (_, client) = subject::parse_task(&message.subject)?;
            let id = message.headers.as_ref().and_then(|headers| headers.get(NATS_MESSAGE_ID));
            let id = id.map(|id| id.as_str().to_owned()).unwrap_or_default();
            Some((client, StoredTask { id, sequence }))
        });
        Ok(stored.collect())
    }

    /// What [`Self::publish_task`] takes, without sending.
    pub fn measure_task(&self, task: &Task, client: &ClientId) -> Result<Measured, BusError> {
        let (_, headers, body) = message(task, client)?;
        Ok(Measured::of(&subject::task(&task.run, client), Some(&headers), body.len()))
    }

    /// Tasks of `client` in every run: the one in progress when it stopped, then new ones as they come.
    pub async fn tasks(&self, client: &ClientId) -> Result<Tasks, BusError> {
        let mut tasks = Tasks { bus: self.clone(), client: client.clone(), open: None };
        tasks.open = Some(tasks.open().await?);
        Ok(tasks)
    }
}

/// A task's name for errors, its headers and its body.
fn message(task: &Task, client: &ClientId) -> Result<(String, HeaderMap, Bytes), BusError> {
    let what = format!("task of round {} of run {} for client {client}", task.round, task.run);
    let (mut headers, body) = publish::encode(&what, task)?;
    headers.insert(NATS_MESSAGE_ID, name(task, client));
    Ok((what, headers, body))
}

/// The name under which the broker recognises a repetition.
fn name(task: &Task, client: &ClientId) -> String {
    subject::task_id(&task.run, task.round, client, task.work.name(), task.epoch)
}

/// The newest message for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTask {
    id: String,
    sequence: u64,
}

impl StoredTask {
    /// Whether it is `task`, sent once or again.
    pub fn is(&self, task: &Task, client: &ClientId) -> bool {
        let rest = self.id.strip_prefix(&name(task, client));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(AGAIN))
    }
}

/// Tasks of one client, one at a time.
pub struct Tasks {
    bus: Bus,
    client: ClientId,
    open: Option<Open>,
}

struct Open {
    messages: pull::Stream,
    connections: watch::Receiver<u64>,
}

impl Tasks {
    /// The next task. Waits for ever, through lost connections and restarted brokers. Safe to cancel.
    pub async fn next(&mut self) -> Result<TaskDelivery, BusError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let open = match &mut self.open {
                Some(open) => open,
                None => {
                    tokio::time::sleep(backoff.pause()).await;
                    match self.open().await {
                        Ok(open) => self.open.insert(open),
                        Err(error) => {
                            tracing::debug!(%error, client = %self.client, "task consumer not recreated yet");
                            continue;
                        }
                    }
                }
            };
            let message = tokio::select! {
                biased;
                message = open.messages.next() => message,
                _ = open.connections.changed() => {
                    self.open = None;
                    continue;
                }
            };
            match message {
                Some(Ok(message)) => return Ok(TaskDelivery::new(message)),
                Some(Err(error)) => {
                    tracing::debug!(%error, client = %self.client, "recreating task consumer");
                }
                None => tracing::debug!(client = %self.client, "task consumer ended, recreating it"),
            }
            self.open = None;
        }
    }

    /// Creates or finds the durable consumer named after the client.
    async fn open(&self) -> Result<Open, BusError> {
        let mut connections = self.bus.connections.clone();
        connections.mark_unchanged();
        let what = || format!("waiting for tasks of client {}", self.client);
        let config = pull::Config {
            durable_name: Some(self.client.to_string()),
            filter_subject: subject::tasks_of(&self.client),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            inactive_threshold: FORGOTTEN,
            // What one of many thousand clients acknowledged is not worth a file that is replaced in every round: a broker
            // that was restarted delivers the newest task again, and clients know what they have answered.
            memory_storage: true,
            ..Default::default()
        };
        let consumer = self
            .bus
            .js
            .create_consumer_on_stream(config, subject::TASK_STREAM)
            .await
            .map_err(|error| BusError::broker(what(), error))?;
        // One at a time: a task pulled ahead would be delivered again while the client still trains.
        let messages = consumer
            .stream()
            .max_messages_per_batch(1)
            .heartbeat(Duration::from_secs(5))
            .expires(Duration::from_secs(30))
            .messages()
            .await
            .map_err(|error| BusError::broker(what(), error))?;
        Ok(Open { messages, connections })
    }
}

/// A task as it arrived. It is delivered again unless acknowledged within 12 s of the last [`Self::progress`].
pub struct TaskDelivery {
    /// The task, or why it cannot be read.
    pub result: Result<Task, WireError>,
    /// Its size on the wire.
    pub measured: Measured,
    /// Deliveries so far, this one included.
    pub deliveries: u32,
    /// Its place in the stream: a delivery of the same message has the same.
    pub sequence: u64,
    /// The span that sent it.
    pub origin: Origin,
    message: Message,
}

impl TaskDelivery {
    fn new(message: Message) -> Self {
        let measured = Measured::of(&message.subject, message.headers.as_ref(), message.payload.len());
        let result = publish::decode::<Task>(message.headers.as_ref(), &message.payload)
            .and_then(|task| wire::check_version(task.version).map(|()| task));
        let (deliveries, sequence) = match message.info() {
            Ok(info) => (u32::try_from(info.delivered).unwrap_or(1), info.stream_sequence),
            Err(_) => (1, 0),
        };
        let origin = publish::origin(message.headers.as_ref());
        Self { result, measured, deliveries, sequence, origin, message }
    }

    /// Done: it is not delivered again.
    pub async fn ack(&self) -> Result<(), BusError> {
        self.reply(AckKind::Ack).await
    }

    /// Still at work: 12 more seconds.
    pub async fn progress(&self) -> Result<(), BusError> {
        self.reply(AckKind::Progress).await
    }

    /// Cannot do it now: deliver it again after `delay`.
    pub async fn retry(&self, delay: Duration) -> Result<(), BusError> {
        self.reply(AckKind::Nak(Some(delay))).await
    }

    async fn reply(&self, kind: AckKind) -> Result<(), BusError> {
        self.message.ack_with(kind).await.map_err(|error| BusError::broker("acknowledging a task", error))
    }
}
