//! Events of one run, published in order and behind the back of the phases: a round does not wait for its
//! onlookers.

use fedpeft_bus::Bus;
use fedpeft_protocol::{
    Epoch, PROTOCOL_VERSION, RunId,
    event::{Event, EventKind},
};
use fedpeft_service::now_ms;
use tokio::{sync::mpsc, task::JoinHandle};

/// Events that may wait for the broker; what comes beyond is lost to onlookers, which is better than holding
/// up the run.
const BACKLOG: usize = 4096;
/// Events on their way at once.
const IN_FLIGHT: usize = 64;

/// Publishes the events of one run.
pub(crate) struct EventLog {
    run: RunId,
    epoch: Epoch,
    sender: mpsc::Sender<Event>,
    publisher: JoinHandle<()>,
}

impl EventLog {
    /// Starts publishing what the owner with this fencing token says.
    pub fn start(bus: &Bus, run: &RunId, epoch: Epoch) -> Self {
        let (sender, mut receiver) = mpsc::channel(BACKLOG);
        let bus = bus.clone();
        // Detached: when the log is dropped, the publisher finishes what was handed to it.
        let publisher = tokio::spawn(async move {
            let mut events = Vec::with_capacity(IN_FLIGHT);
            while receiver.recv_many(&mut events, IN_FLIGHT).await > 0 {
                publish(&bus, events.drain(..)).await;
            }
        });
        Self { run: run.clone(), epoch, sender, publisher }
    }

    /// Hands over an event.
    pub fn emit(&self, kind: EventKind) {
        if let Err(error) = self.sender.try_send(event(&self.run, self.epoch, kind)) {
            tracing::warn!(run = %self.run, %error, "event lost");
        }
    }

    /// Waits until all events are published.
    pub async fn finish(self) {
        drop(self.sender);
        // The publisher does not panic; if it were cancelled, nothing would be left to wait for.
        let _ = self.publisher.await;
    }
}

/// Publishes one event of a run that nobody drives.
pub(crate) async fn publish_one(bus: &Bus, run: &RunId, kind: EventKind) {
    publish(bus, [event(run, 0, kind)]).await;
}

fn event(run: &RunId, epoch: Epoch, kind: EventKind) -> Event {
    Event { version: PROTOCOL_VERSION, run: run.clone(), at_ms: now_ms(), epoch, kind }
}

async fn publish(bus: &Bus, events: impl IntoIterator<Item = Event>) {
    if let Err(error) = bus.publish_events(events).await {
        tracing::warn!(%error, "event lost");
    }
}
