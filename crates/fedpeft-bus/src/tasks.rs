//! Tasks as the aggregator sends them; [`crate::Tasks`] is how their clients receive them.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use bytes::Bytes;
use fedpeft_protocol::{ClientId, RunId, round::Task, subject};

use crate::{Bus, BusError, Measured, newest::Left, publish};

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
        let tasks = ("", subject::tasks_of_run(run));
        let newest = self.newest(subject::TASK_STREAM, tasks, true, |_, stored| {
            let id = stored.headers.and_then(|headers| headers.get(NATS_MESSAGE_ID));
            id.map(|id| id.as_str().into()).unwrap_or_default()
        });
        let stored = newest.await?.into_iter().filter_map(|(subject, Left { sequence, made: id })| {
            let (_, client) = subject::parse_task(&subject)?;
            Some((client, StoredTask { id, sequence }))
        });
        Ok(stored.collect())
    }

    /// What [`Self::publish_task`] takes, without sending.
    pub fn measure_task(&self, task: &Task, client: &ClientId) -> Result<Measured, BusError> {
        let (_, headers, body) = message(task, client)?;
        Ok(Measured::of(&subject::task(&task.run, client), Some(&headers), body.len()))
    }
}

/// A task's name for errors, its headers and its body.
fn message(task: &Task, client: &ClientId) -> Result<(String, HeaderMap, Bytes), BusError> {
    let what = format!("task of round {} of run {} for client {client}", task.round, task.run);
    let (mut headers, body) = publish::encode_with(&what, task, &task.payloads().collect::<Vec<_>>())?;
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
    id: Box<str>,
    sequence: u64,
}

impl StoredTask {
    /// Whether it is `task`, sent once or again.
    pub fn is(&self, task: &Task, client: &ClientId) -> bool {
        let rest = self.id.strip_prefix(&name(task, client));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(AGAIN))
    }
}
