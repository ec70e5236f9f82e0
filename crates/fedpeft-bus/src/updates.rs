//! Updates: client to aggregator. They stay in their stream until the aggregator has committed their round
//! and purges it, so that an aggregator that starts again folds the open round from its first update.

use std::time::Duration;

use async_nats::header::NATS_MESSAGE_ID;
use fedpeft_protocol::{
    ClientId, Digest, Round, RunId,
    round::{Task, Update},
    subject,
    wire::{self, Format, WireError},
};
use fedpeft_trace::Origin;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    Bus, BusError, Measured,
    follow::{self, Follow, Followed},
    publish,
};

/// A client keeps trying to deliver its training result for this long.
const PATIENCE: Duration = Duration::from_secs(300);
/// Updates pulled ahead of the aggregator, at most: they are as large as an adapter.
const BATCH: usize = 16;
/// And at least, so that one is there when another was taken.
const LEAST: usize = 2;
/// Bytes pulled ahead where they are known to be large: the memory that they take is that of many more.
const AHEAD: u64 = 3 << 18;

impl Bus {
    /// Sends a client's update and waits until the broker has stored it. The same update (run, round,
    /// client, task and content) is stored once, however often it is published within ten minutes.
    pub async fn publish_update(
        &self,
        run: &RunId,
        round: Round,
        client: &ClientId,
        update: &Update,
    ) -> Result<Measured, BusError> {
        let what = format!("update of client {client} for round {round} of run {run}");
        let (mut headers, body) =
            publish::encode_with(&what, update, &update.payloads().collect::<Vec<_>>())?;
        // The digest keeps others from using up the id beforehand, which would have the update dropped as theirs. Those of
        // payloads are known: they are not computed again.
        let named = Format::MessagePack.encode(&update.named());
        let digest = Digest::of(named.map_err(|error| BusError::wire(&what, error))?);
        headers.insert(NATS_MESSAGE_ID, format!("{}/{digest}", name(run, round, client, &update.task)));
        self.publish_durably(&what, subject::update(run, round, client), headers, body, PATIENCE).await
    }

    /// Whether the last update of `client` for the round of `task` answers it. Of a round that is committed none is stored.
    pub async fn is_answered(&self, task: &Task, client: &ClientId) -> Result<bool, BusError> {
        let filter = subject::update(&task.run, task.round, client);
        let begins = format!("{}/", name(&task.run, task.round, client, &task.task));
        let newest = self.newest(subject::UPDATE_STREAM, ("", filter), true, |_, stored| {
            let id = stored.headers.and_then(|headers| headers.get(NATS_MESSAGE_ID));
            id.is_some_and(|id| id.as_str().starts_with(&begins))
        });
        Ok(newest.await?.values().any(|newest| newest.made))
    }

    /// Every update of `run`, from the first one stored.
    pub async fn updates(&self, run: &RunId) -> Result<Updates, BusError> {
        self.read_updates(subject::updates_of(run), BATCH).await
    }

    /// As [`Self::updates`], where one is expected to have about so many bytes.
    pub async fn updates_of_size(&self, run: &RunId, bytes: u64) -> Result<Updates, BusError> {
        let fit = usize::try_from(AHEAD / bytes.max(1)).unwrap_or(BATCH);
        self.read_updates(subject::updates_of(run), fit.clamp(LEAST, BATCH)).await
    }

    /// Every update of one client for one round of `run`, from the first one stored.
    pub async fn updates_of(
        &self,
        run: &RunId,
        round: Round,
        client: &ClientId,
    ) -> Result<Updates, BusError> {
        self.read_updates(subject::update(run, round, client), BATCH).await
    }

    async fn read_updates(&self, filter: String, batch: usize) -> Result<Updates, BusError> {
        let mut follow =
            Follow::start(self, subject::UPDATE_STREAM, filter, follow::From::First, batch).await?;
        let pending = follow.stored();
        let (sender, receiver) = mpsc::channel(1);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            // One waits here, and no other is taken before there is room for it.
            while let Ok(place) = sender.reserve().await {
                let (delivery, pending) = loop {
                    let next = follow.next().await;
                    if let Some(delivery) = delivery(&next) {
                        break (delivery, next.pending);
                    }
                };
                place.send((delivery, pending));
            }
        });
        Ok(Updates { receiver, reader, pending })
    }
}

/// What the names begin with under which the broker knows the answers of a client to a task.
fn name(run: &RunId, round: Round, client: &ClientId, task: &str) -> String {
    format!("{}/{task}", subject::update_id(run, round, client))
}

/// The update in a message; nothing, if its subject is none of ours.
fn delivery(Followed { message, sequence, .. }: &Followed) -> Option<UpdateDelivery> {
    // Only the stream's own subjects arrive here, but their tokens may be no identifiers.
    let Some((run, round, client)) = subject::parse_update(&message.subject) else {
        tracing::warn!(subject = %message.subject, "update with a malformed subject ignored");
        return None;
    };
    let headers = message.headers.as_ref();
    let update = publish::decode::<Update>(headers, &message.payload)
        .and_then(|update| wire::check_version(update.version).map(|()| update));
    let measured = Measured::of(&message.subject, headers, message.payload.len());
    Some(UpdateDelivery {
        run,
        round,
        client,
        update,
        measured,
        origin: publish::origin(headers),
        sequence: *sequence,
    })
}

/// Updates in the order in which the broker stored them.
///
/// They are taken off the connection as they come, into memory of their own: where one waited in that of the connection,
/// the connection would read the next ones into ever more of it.
pub struct Updates {
    receiver: mpsc::Receiver<(UpdateDelivery, u64)>,
    /// Ends with us.
    reader: JoinSet<()>,
    pending: u64,
}

impl Updates {
    /// The next update. Waits for ever, through lost connections and restarted brokers. Safe to cancel.
    pub async fn next(&mut self) -> UpdateDelivery {
        match self.receiver.recv().await {
            Some((delivery, pending)) => {
                self.pending = pending;
                delivery
            }
            // The reader ends with the runtime, and who waits here with it, or by a fault of ours, which is no secret.
            None => match self.reader.join_next().await {
                Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => std::future::pending().await,
            },
        }
    }

    /// Stored updates that are still to come, as of the last one returned.
    pub fn pending(&self) -> u64 {
        self.pending
    }
}

/// An update as it arrived.
#[derive(Debug)]
pub struct UpdateDelivery {
    /// Run, from the subject.
    pub run: RunId,
    /// Round, from the subject.
    pub round: Round,
    /// Client, from the subject.
    pub client: ClientId,
    /// The update, or why it cannot be read.
    pub update: Result<Update, WireError>,
    /// Its size on the wire.
    pub measured: Measured,
    /// The span that sent it, as the client says.
    pub origin: Origin,
    /// Its place in the stream.
    pub sequence: u64,
}
