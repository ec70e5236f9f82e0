//! Pulling messages off a consumer, so that a few are always on their way and never more.
//!
//! The pull stream of async-nats asks for a whole batch once half of the last has come: with batches of few large messages
//! the broker mostly waits to be asked, and with many they take the memory of one batch and a half. Here small requests
//! follow each other, and all that is on its way is one batch.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subject, Subscriber, jetstream};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::timeout;

use crate::{Bus, BusError};

/// The broker says so often that an idle consumer is alive; two missing beats are too many.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A request that gets nothing for so long is made again.
const EXPIRES: Duration = Duration::from_secs(30);
/// Requests that a full batch is made of.
const PARTS: usize = 4;

/// Messages of one consumer, in its order.
pub(crate) struct Pull {
    bus: Bus,
    /// Where its messages are asked for.
    consumer: Subject,
    inbox: Subject,
    subscriber: Subscriber,
    /// Messages on their way, at most.
    batch: usize,
    /// Messages that were asked for and have not come.
    asked: usize,
}

impl Pull {
    /// Pulls from a consumer, at most `batch` messages ahead.
    pub async fn start(bus: &Bus, stream: &str, consumer: &str, batch: usize) -> Result<Self, BusError> {
        let inbox = bus.client.new_inbox();
        let subscriber = bus.client.subscribe(inbox.clone()).await;
        let subscriber =
            subscriber.map_err(|error| BusError::broker(format!("reading stream {stream}"), error))?;
        Ok(Self {
            consumer: format!("{}.CONSUMER.MSG.NEXT.{stream}.{consumer}", bus.api()).into(),
            bus: bus.clone(),
            inbox: inbox.into(),
            subscriber,
            batch: batch.max(1),
            asked: 0,
        })
    }

    /// The next message, or why the consumer is of no more use. Safe to cancel.
    pub async fn next(&mut self) -> Result<jetstream::Message, String> {
        loop {
            self.ask().await?;
            let message = match timeout(HEARTBEAT * 2, self.subscriber.next()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Err("the subscription ended".to_owned()),
                Err(_) => return Err("no heartbeat".to_owned()),
            };
            match message.status {
                None | Some(StatusCode::OK) => {
                    self.asked = self.asked.saturating_sub(1);
                    return Ok(jetstream::Message { message, context: self.bus.js.clone() });
                }
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                Some(StatusCode::TIMEOUT) => self.asked = self.asked.saturating_sub(expired(&message)),
                Some(status) => {
                    let description = message.description.as_deref().unwrap_or_default();
                    return Err(format!("{status} {description}"));
                }
            }
        }
    }

    /// Asks for as many messages as there is room for, a part of a batch at a time.
    async fn ask(&mut self) -> Result<(), String> {
        let part = self.batch.div_ceil(PARTS);
        while self.asked + part <= self.batch {
            let request = format!(
                r#"{{"batch":{part},"expires":{},"idle_heartbeat":{}}}"#,
                EXPIRES.as_nanos(),
                HEARTBEAT.as_nanos()
            );
            let (consumer, inbox) = (self.consumer.clone(), self.inbox.clone());
            let asking = self.bus.client.publish_with_reply(consumer, inbox, Bytes::from(request));
            asking.await.map_err(|error| error.to_string())?;
            self.asked += part;
        }
        Ok(())
    }
}

/// Messages that a request which has expired did not get.
fn expired(message: &Message) -> usize {
    let left = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
    // One that does not say was not heard of by the consumer: the next heartbeat, or its absence, tells.
    left.and_then(|left| left.as_str().parse().ok()).unwrap_or(1)
}
