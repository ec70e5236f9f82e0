//! Events of one run, published in order and behind the back of the phases: a round does not wait for its
//! onlookers.

use std::sync::{Mutex, PoisonError};

use fedpeft_bus::Bus;
use fedpeft_protocol::{
    Epoch, PROTOCOL_VERSION, RunId,
    event::{Event, EventKind},
};
use fedpeft_service::now_ms;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::report::Report;

/// Events that may wait for the broker; what comes beyond is lost to onlookers, which is better than holding
/// up the run.
const BACKLOG: usize = 4096;
/// Events on their way at once.
const IN_FLIGHT: usize = 256;

/// What is to be said, and when it happened.
enum Said {
    Event {
        at_ms: u64,
        kind: EventKind,
    },
    /// A round was closed: an event or several, which are made when they are sent.
    Closed {
        at_ms: u64,
        report: Box<Report>,
        told: oneshot::Sender<()>,
    },
}

/// Publishes the events of one run.
pub(crate) struct EventLog {
    run: RunId,
    sender: mpsc::Sender<Said>,
    /// Hears when the last round that was closed has been told of.
    told: Mutex<Option<oneshot::Receiver<()>>>,
    publisher: JoinHandle<()>,
}

impl EventLog {
    /// Starts publishing what the owner with this fencing token says.
    pub fn start(bus: &Bus, run: &RunId, epoch: Epoch) -> Self {
        let (sender, mut receiver) = mpsc::channel(BACKLOG);
        let (bus, of) = (bus.clone(), run.clone());
        // Detached: when the log is dropped, the publisher finishes what was handed to it.
        let publisher = tokio::spawn(async move {
            let mut said = Vec::with_capacity(IN_FLIGHT);
            while receiver.recv_many(&mut said, IN_FLIGHT).await > 0 {
                let mut told = Vec::with_capacity(said.len());
                for said in said.drain(..) {
                    match said {
                        Said::Event { at_ms, kind } => tell(&mut told, event(&of, epoch, at_ms, kind)),
                        Said::Closed { at_ms, report, told: done } => {
                            publish(&bus, told.drain(..)).await;
                            let clients = report.clients.clone();
                            let parts = bus.round_closed(report.with_clients(()), clients.iter());
                            publish(&bus, parts.map(|kind| event(&of, epoch, at_ms, kind))).await;
                            drop(clients);
                            // Whether somebody waits for it or not.
                            let _ = done.send(());
                        }
                    }
                }
                publish(&bus, told).await;
            }
        });
        Self { run: run.clone(), sender, told: Mutex::default(), publisher }
    }

    /// Hands over an event.
    pub fn emit(&self, kind: EventKind) {
        self.say(Said::Event { at_ms: now_ms(), kind });
    }

    /// Hands over that a round was closed.
    pub fn close(&self, report: Report) {
        let (told, hears) = oneshot::channel();
        self.say(Said::Closed { at_ms: now_ms(), report: Box::new(report), told });
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(hears);
    }

    /// Waits until the rounds that were closed have been told of. Until then their clients are held, which may be many.
    pub async fn told(&self) {
        let hears = self.told.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(hears) = hears {
            // Where it was lost, there is nothing to wait for.
            let _ = hears.await;
        }
    }

    fn say(&self, said: Said) {
        if let Err(error) = self.sender.try_send(said) {
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
    publish(bus, [event(run, 0, now_ms(), kind)]).await;
}

fn event(run: &RunId, epoch: Epoch, at_ms: u64, kind: EventKind) -> Event {
    Event { version: PROTOCOL_VERSION, run: run.clone(), at_ms, epoch, kind }
}

/// Adds an event to those that are told next. Updates that were accepted one after another are told together: a message
/// for each would be as much work for the broker as the updates themselves.
fn tell(told: &mut Vec<Event>, mut event: Event) {
    if let EventKind::UpdatesAccepted { round, updates } = &mut event.kind
        && let Some(Event { kind: EventKind::UpdatesAccepted { round: before, updates: told }, .. }) =
            told.last_mut()
        && round == before
    {
        told.append(updates);
        return;
    }
    told.push(event);
}

async fn publish(bus: &Bus, events: impl IntoIterator<Item = Event>) {
    if let Err(error) = bus.publish_events(events).await {
        tracing::warn!(%error, "event lost");
    }
}

#[cfg(test)]
mod tests {
    use fedpeft_protocol::{ClientId, Round, event::AcceptedUpdate};

    use super::*;

    #[test]
    fn updates_of_one_round_are_told_together_and_in_their_order() {
        let accepted = |round: Round, name: &str| {
            let client = ClientId::new(name).unwrap();
            let update = AcceptedUpdate { client, examples: 1, loss: 0.5, seconds: 1.0, size: 9 };
            EventKind::UpdatesAccepted { round, updates: vec![update] }
        };
        let waiting = || EventKind::Waiting { present: 1, needed: 2 };
        let said = [accepted(1, "a"), accepted(1, "b"), waiting(), accepted(1, "c"), accepted(2, "a")];
        let (run, mut told) = (RunId::new("r").unwrap(), Vec::new());
        said.into_iter().for_each(|kind| tell(&mut told, event(&run, 1, 5, kind)));
        let names = |kind: &EventKind| match kind {
            EventKind::UpdatesAccepted { round, updates } => {
                let names: Vec<_> = updates.iter().map(|update| update.client.to_string()).collect();
                format!("{round} {}", names.join(" "))
            }
            kind => kind.name().to_owned(),
        };
        let told: Vec<_> = told.iter().map(|event| names(&event.kind)).collect();
        assert_eq!(told, ["1 a b", "waiting", "1 c", "2 a"]);
    }
}
