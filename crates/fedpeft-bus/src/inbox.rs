//! Tasks as their client receives them.
//!
//! No consumer waits for a client: of many thousand clients, that would cost the broker more than all else. When it has
//! stored a task, the broker sends a hint to whoever subscribed to it, and the client asks for the task by its subject. A
//! hint may be lost, and whoever has credentials may send one; so it proves nothing, and what is stored is looked up when
//! the client starts, after every reconnect, and now and then.
//!
//! Nothing is acknowledged either. A task is over when it is answered, and leaves the stream with its round. Until then
//! the client's next process finds it, and [`Bus::is_answered`] tells what is left to do.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{
    HeaderMap, Message, Subscriber,
    header::{NATS_LAST_SEQUENCE, NATS_SEQUENCE, NATS_STREAM, NATS_SUBJECT, NATS_TIME_STAMP},
    jetstream::{
        message::StreamMessage,
        stream::{DirectGetErrorKind, Stream},
    },
};
use fedpeft_protocol::{
    ClientId, RunId,
    round::Task,
    subject,
    wire::{self, WireError},
};
use fedpeft_trace::Origin;
use futures::StreamExt;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{Backoff, Bus, BusError, Measured, newest::Left, publish};

/// How often it is looked up what is stored, whatever hints came: so long a client waits for a task at most whose hint was
/// lost while the connection lived.
const LOOK: Duration = Duration::from_secs(60);
/// Pauses between looks differ by up to this share of [`LOOK`].
const JITTER: f64 = 0.2;
/// Before a look at what a hint did not lead to: a replica may lag behind.
const SOON: Duration = Duration::from_secs(1);
/// Between an answer of the broker and what it has said before.
const MOMENT: Duration = Duration::from_millis(20);
/// Runs that are remembered, and hints that wait.
const RUNS: usize = 1000;

impl Bus {
    /// Tasks of `client` in every run: the open ones, then new ones as they come.
    pub async fn tasks(&self, client: &ClientId) -> Result<Tasks, BusError> {
        let what = || format!("waiting for tasks of client {client}");
        let stream = self.js.get_stream_no_info(subject::TASK_STREAM).await;
        let stream = stream.map_err(|error| BusError::broker(what(), error))?;
        let mut connections = self.connections.clone();
        connections.mark_unchanged();
        let hints = subject::hints_of(client);
        let forbidden = self.forbids(&hints);
        let mut tasks = Tasks {
            bus: self.clone(),
            client: client.clone(),
            stream,
            // First, so that no task comes between the look and the hints.
            hints: subscribe(self, client).await?,
            connections,
            look: Instant::now(),
            wanted: BTreeMap::new(),
            taken: BTreeMap::new(),
            returns: mpsc::unbounded_channel(),
            returned: Vec::new(),
            backoff: pauses(),
        };
        tokio::pin!(forbidden);
        tokio::select! {
            biased;
            () = &mut forbidden => return Err(BusError::Forbidden { what: what() }),
            looked = tasks.look_up() => looked?,
        }
        // That hints are forbidden was said before, and may be heard a moment later.
        match timeout(MOMENT, forbidden).await {
            Ok(()) => Err(BusError::Forbidden { what: what() }),
            Err(_) => Ok(tasks),
        }
    }
}

/// Between attempts to reach a broker that is away.
fn pauses() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(2))
}

async fn subscribe(bus: &Bus, client: &ClientId) -> Result<Subscriber, BusError> {
    let hints = bus.client.subscribe(subject::hints_of(client)).await;
    hints.map_err(|error| BusError::broker(format!("waiting for tasks of client {client}"), error))
}

/// Tasks of one client.
pub struct Tasks {
    bus: Bus,
    client: ClientId,
    stream: Stream<()>,
    hints: Subscriber,
    connections: watch::Receiver<u64>,
    /// When what is stored is looked up next.
    look: Instant,
    /// Messages to ask for, the newest of each run.
    wanted: BTreeMap<RunId, Wanted>,
    /// The newest message of each run that was handed out.
    taken: BTreeMap<RunId, u64>,
    returns: (mpsc::UnboundedSender<Return>, mpsc::UnboundedReceiver<Return>),
    returned: Vec<Return>,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    sequence: u64,
    /// Whether a look found it, or it was put back, and no hint came just now.
    was_found: bool,
}

/// A task that was put back.
struct Return {
    run: RunId,
    sequence: u64,
    due: Instant,
}

impl Tasks {
    /// The next task. Each message comes once, unless it is put back. Waits for ever, through lost connections and
    /// restarted brokers. Safe to cancel.
    pub async fn next(&mut self) -> Result<TaskDelivery, BusError> {
        loop {
            if let Some((run, wanted)) = self.wanted.first_key_value() {
                let (run, wanted) = (run.clone(), *wanted);
                if let Some(delivery) = self.fetch(&run, wanted).await {
                    return Ok(delivery);
                }
                continue;
            }
            let due = self.returned.iter().map(|returned| returned.due).min();
            let due = due.map_or(self.look, |due| due.min(self.look));
            tokio::select! {
                biased;
                _ = self.connections.changed() => self.look = Instant::now(),
                Some(returned) = self.returns.1.recv() => self.returned.push(returned),
                // Before the hints, of which others may send more than there is time for.
                () = sleep_until(due) => self.wake().await,
                hint = self.hints.next() => match hint {
                    Some(hint) => self.take_hint(&hint),
                    None => self.subscribe_again().await,
                },
            }
        }
    }

    /// Notes what a hint is about, if it is as the broker writes them.
    fn take_hint(&mut self, hint: &Message) {
        let sequence = hint.headers.as_ref().and_then(|headers| headers.get(NATS_SEQUENCE));
        let sequence = sequence.and_then(|sequence| sequence.as_str().parse().ok());
        if let (Some(run), Some(sequence)) = (subject::parse_hint(&hint.subject), sequence) {
            self.want(run, Wanted { sequence, was_found: false });
        }
    }

    fn want(&mut self, run: RunId, wanted: Wanted) {
        if self.has_taken(&run, wanted.sequence) {
            return;
        }
        if self.wanted.len() >= RUNS && !self.wanted.contains_key(&run) {
            return self.look_soon();
        }
        let known = self.wanted.entry(run).or_insert(wanted);
        if known.sequence < wanted.sequence {
            *known = wanted;
        }
    }

    fn has_taken(&self, run: &RunId, sequence: u64) -> bool {
        self.taken.get(run).is_some_and(|taken| *taken >= sequence)
    }

    fn look_soon(&mut self) {
        self.look = self.look.min(Instant::now() + SOON);
    }

    /// Asks for the newest task of a run. Nothing, if it is not there, or the broker did not answer.
    async fn fetch(&mut self, run: &RunId, wanted: Wanted) -> Option<TaskDelivery> {
        let stored = self.stream.direct_get_last_for_subject(subject::task(run, &self.client)).await;
        let message = match stored {
            Ok(message) if !self.has_taken(run, message.sequence) => message,
            Err(error) if !matches!(error.kind(), DirectGetErrorKind::NotFound) => {
                tracing::debug!(%error, client = %self.client, %run, "asking for a task again");
                sleep(self.backoff.pause()).await;
                return None;
            }
            // It is over, or was answered by a replica that lags behind, or the hint was a lie.
            _ => {
                self.wanted.remove(run);
                self.look_soon();
                return None;
            }
        };
        self.backoff = pauses();
        self.wanted.remove(run);
        // Whatever the hint promised, this is a task. But a replica may lag behind.
        if message.sequence < wanted.sequence {
            self.look_soon();
        }
        if self.taken.len() >= RUNS && !self.taken.contains_key(run) {
            self.taken.clear();
        }
        self.taken.insert(run.clone(), message.sequence);
        let was_found = wanted.was_found || message.sequence != wanted.sequence;
        Some(TaskDelivery::new(message, run.clone(), was_found, self.returns.0.clone()))
    }

    /// Does what is due.
    async fn wake(&mut self) {
        let now = Instant::now();
        let due = self.returned.extract_if(.., |returned| returned.due <= now).collect::<Vec<_>>();
        for Return { run, sequence, .. } in due {
            if self.taken.get(&run) == Some(&sequence) {
                self.taken.remove(&run);
                self.want(run, Wanted { sequence, was_found: true });
            }
        }
        if self.look <= now
            && let Err(error) = self.look_up().await
        {
            tracing::debug!(%error, client = %self.client, "tasks not looked up yet");
            self.look = Instant::now() + self.backoff.pause();
        }
    }

    /// Looks up what is stored.
    async fn look_up(&mut self) -> Result<(), BusError> {
        let tasks = ("", subject::tasks_of(&self.client));
        let newest = self.bus.newest(subject::TASK_STREAM, tasks, true, |_, _| ()).await?;
        self.look = Instant::now() + LOOK.mul_f64(1.0 + JITTER * (2.0 * fastrand::f64() - 1.0));
        for (subject, Left { sequence, .. }) in newest {
            if let Some((run, _)) = subject::parse_task(&subject) {
                self.want(run, Wanted { sequence, was_found: true });
            }
        }
        Ok(())
    }

    /// Subscribes anew where the subscription has ended.
    async fn subscribe_again(&mut self) {
        sleep(SOON).await;
        match subscribe(&self.bus, &self.client).await {
            Ok(hints) => {
                self.hints = hints;
                self.look = Instant::now();
            }
            Err(error) => tracing::debug!(%error, client = %self.client, "not subscribed yet"),
        }
    }
}

/// A task as it arrived.
pub struct TaskDelivery {
    /// The task, or why it cannot be read.
    pub result: Result<Task, WireError>,
    /// Its size on the wire, as it was sent.
    pub measured: Measured,
    /// Its place in the stream: a delivery of the same message has the same.
    pub sequence: u64,
    /// Whether it was found stored, or comes again: another process of this client may have answered it in the meantime.
    pub was_found: bool,
    /// The span that sent it.
    pub origin: Origin,
    run: RunId,
    returns: mpsc::UnboundedSender<Return>,
}

impl TaskDelivery {
    fn new(
        message: StreamMessage,
        run: RunId,
        was_found: bool,
        returns: mpsc::UnboundedSender<Return>,
    ) -> Self {
        let StreamMessage { subject, sequence, headers, payload, .. } = message;
        let headers = as_sent(headers);
        let measured = Measured::of(&subject, Some(&headers), payload.len());
        let result = publish::decode::<Task>(Some(&headers), &payload)
            .and_then(|task| wire::check_version(task.version).map(|()| task));
        let origin = publish::origin(Some(&headers));
        Self { result, measured, sequence, was_found, origin, run, returns }
    }

    /// Cannot do it now: it comes again after `delay`, if it is still the newest of its run.
    pub fn retry(&self, delay: Duration) {
        let due = Instant::now() + delay;
        // Whoever has dropped its tasks waits for none.
        let _ = self.returns.send(Return { run: self.run.clone(), sequence: self.sequence, due });
    }
}

/// Headers without those that the broker adds when it answers.
fn as_sent(headers: HeaderMap) -> HeaderMap {
    let added = [NATS_STREAM, NATS_SUBJECT, NATS_SEQUENCE, NATS_TIME_STAMP, NATS_LAST_SEQUENCE];
    let mut sent = HeaderMap::new();
    for (name, values) in headers.iter().filter(|(name, _)| !added.contains(name)) {
        values.iter().for_each(|value| sent.append(name.clone(), value.clone()));
    }
    sent
}
