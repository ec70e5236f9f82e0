//! Events: what happened, for whoever looks.

use std::time::Duration;

use fedpeft_protocol::{RunId, event::Event, subject, wire};

use crate::{
    Bus, BusError,
    follow::{self, Follow},
    publish,
};

const PATIENCE: Duration = Duration::from_secs(15);
const BATCH: usize = 200;

impl Bus {
    /// Publishes an event of its run.
    pub async fn publish_event(&self, event: &Event) -> Result<(), BusError> {
        let what = format!("event {} of run {}", event.kind.name(), event.run);
        let (headers, body) = publish::encode(&what, event)?;
        let subject = subject::event(&event.run, event.kind.name());
        self.publish_durably(&what, subject, headers, body, PATIENCE).await?;
        Ok(())
    }

    /// Events of one run or of all, from the first one stored or from now on.
    pub async fn events(&self, run: Option<&RunId>, from_start: bool) -> Result<Events, BusError> {
        let filter = run.map_or_else(|| subject::EVENT_SUBJECTS.to_owned(), subject::events_of);
        let from = if from_start { follow::From::First } else { follow::From::Now };
        let follow = Follow::start(self, subject::EVENT_STREAM, filter, from, BATCH).await?;
        let pending = follow.stored();
        Ok(Events { follow, sequence: 0, pending })
    }
}

/// Events in the order in which the broker stored them.
pub struct Events {
    follow: Follow,
    sequence: u64,
    pending: u64,
}

impl Events {
    /// The next event; those that cannot be read are skipped with a warning. Waits for ever, through lost
    /// connections and restarted brokers. Safe to cancel.
    pub async fn next(&mut self) -> Result<Event, BusError> {
        loop {
            let next = self.follow.next().await;
            let message = &next.message;
            (self.sequence, self.pending) = (next.sequence, next.pending);
            let decoded = publish::decode::<Event>(message.headers.as_ref(), &message.payload)
                .and_then(|event| wire::check_version(event.version).map(|()| event));
            match decoded {
                // Permissions guard subjects: an event speaks for the run of its subject and for no other.
                Ok(event) if *message.subject != *subject::event(&event.run, event.kind.name()) => {
                    let subject = &message.subject;
                    tracing::warn!(%subject, sequence = next.sequence, "event of another subject skipped");
                }
                Ok(event) => return Ok(event),
                Err(error) => {
                    tracing::warn!(%error, subject = %message.subject, sequence = next.sequence, "event skipped");
                }
            }
        }
    }

    /// Place in the stream of the event last returned: it grows from event to event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Stored events that are still to come, as of the last one returned.
    pub fn pending(&self) -> u64 {
        self.pending
    }
}
