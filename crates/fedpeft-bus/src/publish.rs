//! Durable publishing: repeated under one deduplication id until the broker has stored the message.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream::context::PublishErrorKind};
use bytes::Bytes;
use fedpeft_protocol::{PROTOCOL_VERSION, round::Payload, subject, wire};
use fedpeft_trace::{Origin, TRACEPARENT, traceparent};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use crate::{Backoff, Bus, BusError, Measured, measure::header_bytes};

/// What most messages have beside payloads, at most.
const REST: usize = 1024;

/// Headers and body of a message in MessagePack; where traces are exported, it says in which it is sent.
pub(crate) fn encode<T: Serialize>(what: &str, message: &T) -> Result<(HeaderMap, Bytes), BusError> {
    encode_with(what, message, &[])
}

/// As [`encode`], where the message holds these payloads and little else.
pub(crate) fn encode_with<T: Serialize>(
    what: &str,
    message: &T,
    payloads: &[&Payload],
) -> Result<(HeaderMap, Bytes), BusError> {
    let format = wire::Format::MessagePack;
    let held = payloads.iter().map(|payload| payload.held()).sum::<usize>();
    let body = format.encode_sized(message, held + REST).map_err(|error| BusError::wire(what, error))?;
    let mut headers = HeaderMap::new();
    headers.insert(subject::CONTENT_TYPE, format.content_type());
    headers.insert(subject::VERSION_HEADER, PROTOCOL_VERSION.to_string());
    if let Some(traceparent) = traceparent() {
        headers.insert(TRACEPARENT, traceparent);
    }
    Ok((headers, body.into()))
}

/// Where a message comes from.
pub(crate) fn origin(headers: Option<&HeaderMap>) -> Origin {
    Origin::read(headers.and_then(|all| all.get(TRACEPARENT)).map(|value| value.as_str()))
}

/// Decodes a message of this protocol version; a header that declares another one is believed before the
/// body is looked at, for the body of another version may have any shape.
pub(crate) fn decode<T: DeserializeOwned>(
    headers: Option<&HeaderMap>,
    body: &[u8],
) -> Result<T, wire::WireError> {
    let header = |name: &str| headers.and_then(|all| all.get(name)).map(|value| value.as_str());
    if let Some(got) = header(subject::VERSION_HEADER).and_then(|text| text.trim().parse().ok()) {
        wire::check_version(got)?;
    }
    wire::Format::from_content_type(header(subject::CONTENT_TYPE))?.decode(body)
}

/// Bytes that the broker's limit counts.
pub(crate) fn size(headers: &HeaderMap, body: &Bytes) -> usize {
    header_bytes(headers) + body.len()
}

impl Bus {
    /// Publishes to a stream and waits until the broker has stored it, for as long as `patience`.
    pub(crate) async fn publish_durably(
        &self,
        what: &str,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
        patience: Duration,
    ) -> Result<Measured, BusError> {
        self.check_size(what, size(&headers, &body))?;
        let measured = Measured::of(&subject, Some(&headers), body.len());
        let give_up = Instant::now() + patience;
        let mut backoff = Backoff::default();
        loop {
            let publishing = async {
                self.js.publish_with_headers(subject.clone(), headers.clone(), body.clone()).await?.await
            };
            let published = tokio::select! {
                published = publishing => published,
                () = self.forbids(&subject) => return Err(BusError::Forbidden { what: what.into() }),
            };
            let error = match published {
                Ok(_) => return Ok(measured),
                Err(error) => error,
            };
            if error.kind() == PublishErrorKind::MaxPayloadExceeded {
                return Err(BusError::broker(what, error));
            }
            let pause = backoff.pause();
            if Instant::now() + pause > give_up {
                return Err(match error.kind() {
                    PublishErrorKind::TimedOut => BusError::Timeout { what: what.into() },
                    _ => BusError::broker(what, error),
                });
            }
            tracing::debug!(%error, what, "publishing again");
            tokio::time::sleep(pause).await;
        }
    }

    /// An oversized message breaks the connection, so it is refused here by name.
    pub(crate) fn check_size(&self, what: &str, size: usize) -> Result<(), BusError> {
        let limit = self.max_payload();
        if size <= limit { Ok(()) } else { Err(BusError::MessageTooLarge { what: what.into(), size, limit }) }
    }
}
