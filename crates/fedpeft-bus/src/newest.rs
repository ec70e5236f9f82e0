//! What a stream holds at the moment: the newest message of every subject, all of them or an error.
//!
//! The consumer behind it sends every message once. One that is lost with its connection is not sent again, and
//! the end of a batch may be lost as well: so messages are counted, and waiting for them has an end. A message that is
//! replaced while they are sent may come twice, or neither before nor after: so the broker is asked which subjects there are,
//! and for each that did not come by itself. Of many subjects it is asked how many there are, before it is asked for their
//! names: should one have come and gone in the same moment in which another did not come, the next list has it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    time::Duration,
};

use async_nats::{
    HeaderMap,
    jetstream::{
        consumer::{AckPolicy, Consumer, DeliverPolicy, pull},
        stream::DirectGetErrorKind,
    },
};
use bytes::Bytes;
use futures::StreamExt;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use smol_str::SmolStr;
use tokio::sync::watch;

use crate::{Bus, BusError};

/// The broker sends the next message sooner.
const SILENCE: Duration = Duration::from_secs(5);
/// It forgets a consumer that nobody asks for so long.
const INACTIVE: Duration = Duration::from_secs(10);
/// Messages fetched in one request.
const BATCH: usize = 256;
/// From so many subjects on, they are counted first.
const MANY: usize = 1000;

/// A message as it is stored.
pub(crate) struct Stored<'a> {
    pub headers: Option<&'a HeaderMap>,
    /// Empty where headers were asked for alone; it may still come.
    pub payload: &'a Bytes,
    /// Its place in the stream.
    pub sequence: u64,
}

/// What is left of the newest message of each subject, by what is its own in the subject.
pub(crate) type Newest<R> = BTreeMap<SmolStr, Left<R>>;

/// What is left of a message.
pub(crate) struct Left<R> {
    /// Its place in the stream.
    pub sequence: u64,
    /// What the caller made of it.
    pub made: R,
}

impl Bus {
    /// What `make` makes of the newest message of every subject that `filter` matches, by what follows `prefix` in its subject,
    /// with which all of them begin; of messages themselves, a batch is held at a time. Where one was lost on the way, the
    /// error is transient: ask again.
    ///
    /// A client may miss those that are replaced at this moment: it may not ask which subjects there are.
    pub(crate) async fn newest<R>(
        &self,
        stream: &str,
        (prefix, filter): (&str, String),
        headers_only: bool,
        mut make: impl FnMut(&str, Stored<'_>) -> R,
    ) -> Result<Newest<R>, BusError> {
        // Taken first: a reconnect from here on is noticed.
        let mut connections = self.connections.clone();
        connections.mark_unchanged();
        let config = pull::Config {
            // With a name, the filter is part of the request's subject, where permissions can see it.
            name: Some(self.unique()),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            filter_subject: filter.clone(),
            headers_only,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let consumer = self.js.create_consumer_on_stream(config, stream).await;
        let consumer = consumer.map_err(|error| failed(stream, error))?;
        let mut newest = read((stream, prefix), &consumer, &mut connections, &mut make).await?;
        // It would vanish by itself, but whoever lists often should not pile consumers up. Clients may not delete any.
        if self.is_client() {
            return Ok(newest);
        }
        let name = &consumer.cached_info().name;
        if let Err(error) = self.js.delete_consumer_from_stream(name, stream).await {
            tracing::debug!(%error, stream, "listing consumer left to expire");
        }
        self.complete(stream, (prefix, &filter), &mut newest, &mut make).await?;
        Ok(newest)
    }

    /// Asks for the messages of all subjects that are missing.
    async fn complete<R>(
        &self,
        stream: &str,
        (prefix, filter): (&str, &str),
        newest: &mut Newest<R>,
        make: &mut impl FnMut(&str, Stored<'_>) -> R,
    ) -> Result<(), BusError> {
        if newest.len() >= MANY && self.count(stream, filter).await? == Some(newest.len()) {
            return Ok(());
        }
        let handle = self.js.get_stream_no_info(stream).await.map_err(|error| failed(stream, error))?;
        let is_missing = |subject: &str| !newest.contains_key(own(prefix, subject));
        let missing = self.subjects(stream, filter, is_missing).await?;
        for subject in missing {
            match handle.direct_get_last_for_subject(subject.as_str()).await {
                Ok(message) => {
                    let (headers, payload) = (Some(&message.headers), &message.payload);
                    let stored = Stored { headers, payload, sequence: message.sequence };
                    keep(newest, own(prefix, &subject), stored, make);
                }
                // It is gone by now.
                Err(error) if matches!(error.kind(), DirectGetErrorKind::NotFound) => {}
                Err(error) => return Err(failed(stream, error)),
            }
        }
        Ok(())
    }
}

impl Bus {
    /// How many subjects the stream has, if `filter` matches them all.
    async fn count(&self, stream: &str, filter: &str) -> Result<Option<usize>, BusError> {
        let reply = self.client.request(format!("$JS.API.STREAM.INFO.{stream}"), Bytes::new()).await;
        let reply = reply.map_err(|error| failed(stream, error))?;
        let info: Info<'_> = serde_json::from_slice(&reply.payload).map_err(|error| failed(stream, error))?;
        let is_all = info.config.is_some_and(|config| config.subjects == [filter]);
        Ok(info.state.filter(|_| is_all).map(|state| state.num_subjects))
    }

    /// Those of the stream's subjects that `filter` matches and `is_wanted` takes.
    async fn subjects(
        &self,
        stream: &str,
        filter: &str,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, BusError> {
        let (mut wanted, mut offset) = (Vec::new(), 0);
        loop {
            let request = serde_json::json!({ "subjects_filter": filter, "offset": offset }).to_string();
            let reply = self.client.request(format!("$JS.API.STREAM.INFO.{stream}"), request.into()).await;
            let reply = reply.map_err(|error| failed(stream, error))?;
            let info: Info<'_> =
                serde_json::from_slice(&reply.payload).map_err(|error| failed(stream, error))?;
            let Some(state) = info.state else {
                let reason = info.error.map_or_else(|| "no state".to_owned(), |error| error.description);
                return Err(failed(stream, reason));
            };
            let Some(subjects) = state.subjects else { return Ok(wanted) };
            let page = Subjects { is_wanted: &is_wanted, wanted: &mut wanted };
            let page = page.deserialize(&mut serde_json::Deserializer::from_str(subjects.get()));
            let page = page.map_err(|error| failed(stream, error))?;
            offset += page;
            if page == 0 || offset >= info.total {
                return Ok(wanted);
            }
        }
    }
}

/// What the broker says of a stream, as far as it matters here. Of ten thousand subjects, the types of the client would take
/// some megabytes.
#[derive(Deserialize)]
struct Info<'a> {
    #[serde(borrow)]
    state: Option<State<'a>>,
    config: Option<Config>,
    error: Option<Refusal>,
    /// Subjects on all pages.
    #[serde(default)]
    total: usize,
}

#[derive(Deserialize)]
struct State<'a> {
    #[serde(borrow, default)]
    subjects: Option<&'a RawValue>,
    #[serde(default)]
    num_subjects: usize,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    subjects: Vec<String>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    description: String,
}

/// Takes those subjects out of a map to counts that are wanted; becomes how many there were.
struct Subjects<'a, F> {
    is_wanted: &'a F,
    wanted: &'a mut Vec<String>,
}

/// Where it needs no escapes, as our own do, it is not copied.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, F: Fn(&str) -> bool> DeserializeSeed<'de> for Subjects<'_, F> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: Fn(&str) -> bool> Visitor<'de> for Subjects<'_, F> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("subjects and how many messages they have")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let mut count = 0;
        while let Some((Text(subject), IgnoredAny)) = map.next_entry()? {
            count += 1;
            if (self.is_wanted)(&subject) {
                self.wanted.push(subject.into_owned());
            }
        }
        Ok(count)
    }

    fn visit_unit<E>(self) -> Result<usize, E> {
        Ok(0)
    }
}

/// What is a subject's own among those that begin with `prefix`.
fn own<'a>(prefix: &str, subject: &'a str) -> &'a str {
    subject.strip_prefix(prefix).unwrap_or(subject)
}

async fn read<R>(
    (stream, prefix): (&str, &str),
    consumer: &Consumer<pull::Config>,
    connections: &mut watch::Receiver<u64>,
    make: &mut impl FnMut(&str, Stored<'_>) -> R,
) -> Result<Newest<R>, BusError> {
    let (mut newest, mut came, mut pending) = (Newest::new(), 0, consumer.cached_info().num_pending);
    while pending > 0 {
        let batch = consumer.fetch().max_messages(BATCH).messages().await;
        let mut batch = batch.map_err(|error| failed(stream, error))?;
        let before = came;
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
            (came, pending) = (came + 1, info.pending);
            let (headers, payload) = (message.headers.as_ref(), &message.payload);
            let stored = Stored { headers, payload, sequence };
            keep(&mut newest, own(prefix, &message.subject), stored, make);
            if delivered != came {
                return Err(failed(stream, "a message was lost"));
            }
        }
        if came == before {
            // Messages may expire between counting and fetching.
            let info = consumer.get_info().await.map_err(|error| failed(stream, error))?;
            if info.delivered.consumer_sequence != came {
                return Err(failed(stream, "a message was lost"));
            }
            break;
        }
    }
    Ok(newest)
}

/// Keeps what `make` makes of a message, if it is the newest of its subject.
fn keep<R>(
    newest: &mut Newest<R>,
    own: &str,
    stored: Stored<'_>,
    make: &mut impl FnMut(&str, Stored<'_>) -> R,
) {
    let sequence = stored.sequence;
    match newest.entry(own.into()) {
        Entry::Occupied(mut known) if known.get().sequence < sequence => {
            known.insert(Left { sequence, made: make(own, stored) });
        }
        Entry::Occupied(_) => {}
        Entry::Vacant(place) => {
            place.insert(Left { sequence, made: make(own, stored) });
        }
    }
}

fn what(stream: &str) -> String {
    format!("listing stream {stream}")
}

fn failed(stream: &str, reason: impl fmt::Display) -> BusError {
    BusError::broker(what(stream), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subjects(info: &str) -> (usize, Vec<String>) {
        let info: Info<'_> = serde_json::from_str(info).unwrap();
        let Some(subjects) = info.state.unwrap().subjects else { return (0, vec![]) };
        let mut wanted = Vec::new();
        let page = Subjects { is_wanted: &|subject: &str| subject != "b", wanted: &mut wanted };
        let count = page.deserialize(&mut serde_json::Deserializer::from_str(subjects.get())).unwrap();
        (count, wanted)
    }

    #[test]
    fn subjects_are_read_whatever_is_in_them() {
        let some = r#"{"total":2,"state":{"messages":3,"subjects":{"a.b":1,"b":1,"a.\u003c\"":2},"lost":{}},"config":{"x":[1]}}"#;
        assert_eq!(subjects(some), (3, vec!["a.b".to_owned(), "a.<\"".to_owned()]));
        for none in [r#"{"state":{}}"#, r#"{"state":{"subjects":null}}"#, r#"{"state":{"subjects":{}}}"#] {
            assert_eq!(subjects(none), (0, vec![]));
        }
        let refused = r#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        let info: Info<'_> = serde_json::from_str(refused).unwrap();
        assert_eq!(info.error.unwrap().description, "stream not found");
    }
}
