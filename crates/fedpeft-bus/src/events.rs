//! Events: what happened, for whoever looks.

use std::{
    collections::{BTreeMap, VecDeque},
    iter, mem,
    time::Duration,
};

use async_nats::{
    HeaderMap,
    jetstream::context::{PublishAckFuture, PublishError},
};
use bytes::Bytes;
use fedpeft_protocol::{
    Epoch, Round, RunId,
    event::{AcceptedUpdate, Event, EventKind},
    round::{ClientReport, RoundReport},
    subject, wire,
};

use crate::{
    Bus, BusError,
    follow::{self, Follow},
    publish,
};

const PATIENCE: Duration = Duration::from_secs(15);
const BATCH: usize = 200;
/// Bytes that a client takes in a report at most, its name and a reason of some length in it.
const PER_CLIENT: usize = 1200;
/// Bytes of events that wait for the broker at once.
const ON_THE_WAY: usize = 1 << 18;
/// Clients in one event, whatever the broker takes.
const CLIENTS: usize = 128;
/// Clients that a reader keeps until the event comes that they belong to.
const KEPT: usize = 100_000;

impl Bus {
    /// Publishes an event of its run.
    pub async fn publish_event(&self, event: &Event) -> Result<(), BusError> {
        self.publish_events([event.clone()]).await
    }

    /// Publishes events in this order, without waiting for the broker after each. One that is sent again because it
    /// was not stored comes later. The first error, once all were tried.
    pub async fn publish_events(&self, events: impl IntoIterator<Item = Event>) -> Result<(), BusError> {
        let (mut sent, mut size) = (VecDeque::new(), 0);
        let mut failed = Ok(());
        for event in events {
            let what = format!("event {} of run {}", event.kind.name(), event.run);
            let subject = subject::event(&event.run, event.kind.name());
            let encoded = publish::encode(&what, &event).and_then(|(headers, body)| {
                self.check_size(&what, publish::size(&headers, &body)).map(|()| (headers, body))
            });
            match encoded {
                Ok((headers, body)) => {
                    size += body.len();
                    let publishing =
                        self.js.publish_with_headers(subject.clone(), headers.clone(), body.clone()).await;
                    sent.push_back(Sent { what, subject, headers, body, publishing });
                }
                Err(error) => failed = failed.and(Err(error)),
            }
            while size > ON_THE_WAY
                && let Some(first) = sent.pop_front()
            {
                size -= first.body.len();
                failed = failed.and(self.stored(first).await);
            }
        }
        for sent in sent {
            failed = failed.and(self.stored(sent).await);
        }
        failed
    }

    /// Waits until an event is stored, and sends it again where it is not.
    async fn stored(&self, Sent { what, subject, headers, body, publishing }: Sent) -> Result<(), BusError> {
        let is_stored = match publishing {
            Ok(acknowledged) => acknowledged.await.is_ok(),
            Err(_) => false,
        };
        if is_stored {
            return Ok(());
        }
        self.publish_durably(&what, subject, headers, body, PATIENCE).await.map(drop)
    }

    /// What tells of a closed round: one event, or several, where it has more clients than fit a message. They are made
    /// one after another, of clients as they come.
    pub fn round_closed<I: ExactSizeIterator<Item = ClientReport>>(
        &self,
        report: RoundReport<()>,
        mut clients: I,
    ) -> impl Iterator<Item = EventKind> + use<I> {
        let most = (self.max_payload() / 2 / PER_CLIENT).clamp(1, CLIENTS);
        let (round, is_one) = (report.round, clients.len() <= most);
        let mut report = Some(report);
        iter::from_fn(move || {
            let some: Vec<_> = clients.by_ref().take(most).collect();
            if is_one || some.is_empty() {
                let report = Box::new(report.take()?.with_clients(some));
                return Some(EventKind::RoundClosed { report });
            }
            Some(EventKind::RoundClients { round, clients: some })
        })
    }

    /// Events of one run or of all, from the first one stored or from now on.
    pub async fn events(&self, run: Option<&RunId>, from_start: bool) -> Result<Events, BusError> {
        let filter = run.map_or_else(|| subject::EVENT_SUBJECTS.to_owned(), subject::events_of);
        let from = if from_start { follow::From::First } else { follow::From::Now };
        let follow = Follow::start(self, subject::EVENT_STREAM, filter, from, BATCH).await?;
        let pending = follow.stored();
        let (place, parts) = (Place::default(), VecDeque::new());
        Ok(Events { follow, place, pending, clients: BTreeMap::new(), parts })
    }
}

/// An event on its way to the broker.
struct Sent {
    what: String,
    subject: String,
    headers: HeaderMap,
    body: Bytes,
    publishing: Result<PublishAckFuture, PublishError>,
}

/// Where an event lies: it grows from event to event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The place of its message in the stream.
    pub sequence: u64,
    /// Its place in the message, which may tell of several.
    pub part: u32,
}

/// Events in the order in which the broker stored them. [`EventKind::RoundClients`] are not among them: their clients
/// are in the report of the [`EventKind::RoundClosed`] that comes after them. Nor are [`EventKind::UpdatesAccepted`]: each
/// update is told of by itself.
pub struct Events {
    follow: Follow,
    place: Place,
    pending: u64,
    clients: BTreeMap<RunId, Told>,
    /// What is left of a message that tells of several events.
    parts: VecDeque<Event>,
}

/// Clients of a round that was not closed yet.
#[derive(Default)]
struct Told {
    round: Round,
    epoch: Epoch,
    clients: Vec<ClientReport>,
}

impl Events {
    /// The next event; those that cannot be read are skipped with a warning. Waits for ever, through lost
    /// connections and restarted brokers. Safe to cancel.
    pub async fn next(&mut self) -> Result<Event, BusError> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                self.place.part += 1;
                return Ok(part);
            }
            let next = self.follow.next().await;
            let message = &next.message;
            self.place = Place { sequence: next.sequence, part: 0 };
            self.pending = next.pending;
            let decoded = publish::decode::<Event>(message.headers.as_ref(), &message.payload)
                .and_then(|event| wire::check_version(event.version).map(|()| event));
            match decoded {
                // Permissions guard subjects: an event speaks for the run of its subject and for no other.
                Ok(event) if *message.subject != *subject::event(&event.run, event.kind.name()) => {
                    let subject = &message.subject;
                    tracing::warn!(%subject, sequence = next.sequence, "event of another subject skipped");
                }
                Ok(event) => {
                    if let Some(event) = self.joined(event) {
                        return Ok(event);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, subject = %message.subject, sequence = next.sequence, "event skipped");
                }
            }
        }
    }

    /// The event with the clients that were told of before it; none, if it is such clients, or if it is in parts.
    fn joined(&mut self, mut event: Event) -> Option<Event> {
        match &mut event.kind {
            EventKind::UpdatesAccepted { round, updates } => {
                let (round, updates) = (*round, mem::take(updates));
                let part = |AcceptedUpdate { client, examples, loss, seconds, size }| {
                    let kind = EventKind::UpdateAccepted { round, client, examples, loss, seconds, size };
                    Event { kind, run: event.run.clone(), ..event }
                };
                self.parts = updates.into_iter().map(part).collect();
                return None;
            }
            EventKind::RoundClients { round, clients } => {
                if self.clients.values().map(|told| told.clients.len()).sum::<usize>() > KEPT {
                    self.clients.clear();
                }
                let told = self.clients.entry(event.run).or_default();
                if (told.round, told.epoch) != (*round, event.epoch) {
                    *told = Told { round: *round, epoch: event.epoch, clients: Vec::new() };
                }
                told.clients.append(clients);
                return None;
            }
            EventKind::RoundClosed { report } => {
                let told = self.clients.remove(&event.run);
                let of_this = |told: &Told| (told.round, told.epoch) == (report.round, event.epoch);
                if let Some(told) = told.filter(of_this)
                    && report.clients.is_empty()
                {
                    report.clients = told.clients;
                }
            }
            _ => {}
        }
        Some(event)
    }

    /// Place of the event last returned.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Stored events that are still to come, as of the last one returned.
    pub fn pending(&self) -> u64 {
        self.pending
    }
}
