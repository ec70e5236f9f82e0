//! Reading a stream from a position, without gaps, for ever.
//!
//! Pull consumers have been seen to stop after a reconnect, and ephemeral ones vanish with a restarted
//! broker. So the position is kept here, and whenever the consumer errs, skips or falls silent it is
//! replaced by a new one that starts after the last message seen.

use std::time::Duration;

use async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
};
use tokio::sync::watch;

use crate::{Backoff, Bus, BusError, pull::Pull};

/// A consumer without a message for this long is replaced: cheap, and no stall is longer than this.
const SILENCE: Duration = Duration::from_secs(60);
/// The broker forgets a consumer that was abandoned for this long.
const INACTIVE: Duration = Duration::from_secs(60);

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// At the first stored message.
    First,
    /// After the last stored message.
    Now,
    /// At the newest stored message of every subject.
    LastOfEach,
    /// After the message of this sequence.
    After(u64),
}

/// Before a consumer is recreated.
fn pauses() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(2))
}

pub(crate) struct Follow {
    bus: Bus,
    stream: String,
    filter: String,
    from: From,
    /// Messages pulled at once: the memory a slow reader can pin.
    batch: usize,
    /// Bodies stay with the broker, which says their sizes instead.
    headers_only: bool,
    /// Stream sequence of the last message seen, or of the one before the first to be delivered.
    position: Option<u64>,
    open: Option<Open>,
    backoff: Backoff,
}

struct Open {
    messages: Pull,
    connections: watch::Receiver<u64>,
    delivered: u64,
    stored: u64,
}

/// One message and its place.
pub(crate) struct Followed {
    pub message: Message,
    pub sequence: u64,
    /// Messages stored after this one.
    pub pending: u64,
}

impl Follow {
    /// Opens the consumer at once, so that a caller that publishes next misses nothing.
    pub async fn start(
        bus: &Bus,
        stream: impl Into<String>,
        filter: String,
        from: From,
        batch: usize,
    ) -> Result<Self, BusError> {
        Self::new(bus, stream.into(), filter, from, batch, false).await
    }

    /// As [`Self::start`], but messages come without their bodies.
    pub async fn headers(
        bus: &Bus,
        stream: impl Into<String>,
        filter: String,
        from: From,
        batch: usize,
    ) -> Result<Self, BusError> {
        Self::new(bus, stream.into(), filter, from, batch, true).await
    }

    async fn new(
        bus: &Bus,
        stream: String,
        filter: String,
        from: From,
        batch: usize,
        headers_only: bool,
    ) -> Result<Self, BusError> {
        let mut follow = Self {
            bus: bus.clone(),
            stream,
            filter,
            from,
            batch,
            headers_only,
            position: None,
            open: None,
            backoff: pauses(),
        };
        follow.open = Some(follow.open().await?);
        Ok(follow)
    }

    /// Messages that were to come when the consumer was opened.
    pub fn stored(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.stored)
    }

    /// The next message. Waits for ever; safe to cancel.
    pub async fn next(&mut self) -> Followed {
        loop {
            if self.open.is_none() {
                tokio::time::sleep(self.backoff.pause()).await;
                match self.open().await {
                    Ok(open) => self.open = Some(open),
                    Err(error) => {
                        tracing::debug!(%error, stream = self.stream, "consumer not recreated yet");
                        continue;
                    }
                }
            }
            let Some(open) = &mut self.open else { continue };
            let message = tokio::select! {
                biased;
                message = open.messages.next() => message,
                _ = open.connections.changed() => {
                    self.open = None;
                    continue;
                }
                () = tokio::time::sleep(SILENCE) => {
                    self.open = None;
                    continue;
                }
            };
            let trouble = match message {
                Ok(message) => {
                    let place = message.info().map(|i| (i.consumer_sequence, i.stream_sequence, i.pending));
                    match place {
                        Ok((delivered, sequence, pending)) if delivered == open.delivered + 1 => {
                            open.delivered = delivered;
                            self.position = Some(sequence);
                            self.backoff = pauses();
                            return Followed { message, sequence, pending };
                        }
                        Ok(_) => "a message was skipped".to_owned(),
                        Err(error) => error.to_string(),
                    }
                }
                Err(trouble) => trouble,
            };
            tracing::debug!(stream = self.stream, trouble, "recreating consumer");
            self.open = None;
        }
    }

    async fn open(&mut self) -> Result<Open, BusError> {
        let what = || format!("reading stream {}", self.stream);
        // Taken first: a reconnect from here on is noticed.
        let mut connections = self.bus.connections.clone();
        connections.mark_unchanged();
        let deliver_policy = match (self.position, self.from) {
            (Some(position), _) => DeliverPolicy::ByStartSequence { start_sequence: position + 1 },
            (None, From::First) => DeliverPolicy::All,
            (None, From::Now) => DeliverPolicy::New,
            (None, From::LastOfEach) => DeliverPolicy::LastPerSubject,
            (None, From::After(sequence)) => DeliverPolicy::ByStartSequence { start_sequence: sequence + 1 },
        };
        let config = pull::Config {
            // With a name, the filter is part of the request's subject, where permissions can see it.
            name: Some(self.bus.unique()),
            deliver_policy,
            ack_policy: AckPolicy::None,
            headers_only: self.headers_only,
            filter_subject: self.filter.clone(),
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let consumer = self
            .bus
            .js
            .create_consumer_on_stream(config, self.stream.as_str())
            .await
            .map_err(|error| BusError::broker(what(), error))?;
        if self.position.is_none() && self.from == From::Now {
            // Without this, a consumer lost before its first message would come back after messages it missed.
            self.position = Some(consumer.cached_info().delivered.stream_sequence);
        }
        let stored = consumer.cached_info().num_pending;
        let name = &consumer.cached_info().name;
        let messages = Pull::start(&self.bus, &self.stream, name, self.batch).await?;
        Ok(Open { messages, connections, delivered: 0, stored })
    }
}
