//! What a stream holds at the moment: the newest message of every subject, all of them or an error.
//!
//! The consumer behind it sends every message once. One that is lost with its connection is not sent again, and
//! the end of a batch may be lost as well: so messages are counted, and waiting for them has an end.

use std::time::Duration;

use async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, Consumer, DeliverPolicy, pull},
};
use futures::StreamExt;
use tokio::sync::watch;

use crate::{Bus, BusError};

/// The broker sends the next message sooner.
const SILENCE: Duration = Duration::from_secs(5);
/// It forgets a consumer that nobody asks for so long.
const INACTIVE: Duration = Duration::from_secs(10);
/// Messages fetched in one request.
const BATCH: usize = 256;

/// A message, its place in the stream known.
pub(crate) struct Newest {
    pub message: Message,
    pub sequence: u64,
}

impl Bus {
    /// The newest message of every subject that `filter` matches, in the order of the stream. Where one was lost
    /// on the way, the error is transient: ask again.
    pub(crate) async fn newest(
        &self,
        stream: &str,
        filter: String,
        headers_only: bool,
    ) -> Result<Vec<Newest>, BusError> {
        // Taken first: a reconnect from here on is noticed.
        let mut connections = self.connections.clone();
        connections.mark_unchanged();
        let config = pull::Config {
            // With a name, the filter is part of the request's subject, where permissions can see it.
            name: Some(self.unique()),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            filter_subject: filter,
            headers_only,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let consumer = self.js.create_consumer_on_stream(config, stream).await;
        let consumer = consumer.map_err(|error| failed(stream, error))?;
        let found = read(stream, &consumer, &mut connections).await?;
        // It would vanish by itself, but whoever lists often should not pile consumers up. Clients may not delete any.
        if self.is_client() {
            return Ok(found);
        }
        let name = &consumer.cached_info().name;
        if let Err(error) = self.js.delete_consumer_from_stream(name, stream).await {
            tracing::debug!(%error, stream, "listing consumer left to expire");
        }
        Ok(found)
    }
}

async fn read(
    stream: &str,
    consumer: &Consumer<pull::Config>,
    connections: &mut watch::Receiver<u64>,
) -> Result<Vec<Newest>, BusError> {
    let (mut found, mut pending) = (Vec::new(), consumer.cached_info().num_pending);
    while pending > 0 {
        let batch = consumer.fetch().max_messages(BATCH).messages().await;
        let mut batch = batch.map_err(|error| failed(stream, error))?;
        let before = found.len();
        loop {
            let message = tokio::select! {
                biased;
                message = batch.next() => message,
                _ = connections.changed() => return Err(failed(stream, "the connection was lost")),
                () = tokio::time::sleep(SILENCE) => return Err(BusError::Timeout { what: what(stream) }),
            };
            let Some(message) = message else { break };
            let message = message.map_err(|error| failed(stream, error))?;
            let info = message.info().map_err(|error| failed(stream, error))?;
            let (delivered, sequence) = (info.consumer_sequence, info.stream_sequence);
            pending = info.pending;
            found.push(Newest { message, sequence });
            if delivered != found.len() as u64 {
                return Err(failed(stream, "a message was lost"));
            }
        }
        if found.len() == before {
            // Messages may expire between counting and fetching.
            let info = consumer.get_info().await.map_err(|error| failed(stream, error))?;
            if info.delivered.consumer_sequence != found.len() as u64 {
                return Err(failed(stream, "a message was lost"));
            }
            break;
        }
    }
    Ok(found)
}

fn what(stream: &str) -> String {
    format!("listing stream {stream}")
}

fn failed(stream: &str, reason: impl std::fmt::Display) -> BusError {
    BusError::broker(what(stream), reason)
}
