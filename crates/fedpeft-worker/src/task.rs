//! One task, from its adapter to its update.

use std::sync::Arc;

use bytes::Bytes;
use fedpeft_artifacts::ArtifactFolder;
use fedpeft_bus::Bus;
use fedpeft_codec::Layout;
use fedpeft_protocol::{
    Digest, PROTOCOL_VERSION,
    round::{ByteKind, Direction, Outcome, Payload, Task, Transfer, Update, Work},
};
use fedpeft_registry::Cache;
use fedpeft_runtime::RuntimeError;
use fedpeft_service::{CancellationToken, now_ms};

use crate::{
    engine::{Done, EngineError, EngineWork, Job, Turn},
    roster::{Hosted, Role},
};

/// Bytes of an update beside its adapter, generously.
const ENVELOPE: usize = 8 << 10;

/// Longest reason a failed update gives.
const MAX_REASON: usize = 300;

/// What a task comes to.
pub(crate) enum Answer {
    /// To be published.
    Update(Box<Update>),
    /// Its deadline has passed: nobody waits.
    Late,
    /// This process is told to stop: another, or a later one, should do it.
    HandBack,
}

/// Where tasks are done.
pub(crate) struct Workshop {
    pub bus: Bus,
    pub cache: Cache,
    /// Stops the task in progress.
    pub abort: CancellationToken,
}

impl Workshop {
    /// Does `task` for `client`, whose turn it is.
    pub async fn perform(&self, client: &Hosted, task: &Task, turn: &Turn<'_>) -> Answer {
        if now_ms() >= task.deadline_ms {
            return Answer::Late;
        }
        let mut fetched = Vec::new();
        let outcome = match self.outcome(client, task, turn, &mut fetched).await {
            Ok(outcome) => outcome,
            Err(Failure::Stopped) if self.abort.is_cancelled() => return Answer::HandBack,
            Err(Failure::Stopped) => return Answer::Late,
            Err(Failure::Reason(reason)) => {
                tracing::warn!(client = %client.id, run = %task.run, round = task.round, reason, "task failed");
                Outcome::Failed { reason }
            }
        };
        let (version, epoch, task) = (PROTOCOL_VERSION, task.epoch, task.task.clone());
        Answer::Update(Box::new(Update { version, epoch, task, outcome, fetched }))
    }

    async fn outcome(
        &self,
        client: &Hosted,
        task: &Task,
        turn: &Turn<'_>,
        fetched: &mut Vec<Transfer>,
    ) -> Result<Outcome, Failure> {
        let work = match (&task.work, client.role) {
            (Work::Train { training, seed, rounds, .. }, Role::Trains) => EngineWork::Train {
                training: training.clone(),
                seed: *seed,
                rounds: *rounds,
                round: task.round,
            },
            (Work::Evaluate, Role::Evaluates) => EngineWork::Evaluate,
            (work, _) => return Err(Failure::new(format!("client {} does not {}", client.id, work.name()))),
        };
        let folder = self.pull(task.manifest, false, fetched).await?;
        let layout = folder.manifest().adapter.clone();
        let adapter = Arc::new(self.adapter(&task.adapter, &layout, fetched).await?);
        let job = |folder, adapter| {
            let (abort, deadline) = (self.abort.clone(), task.deadline_ms);
            let proceed = Box::new(move || !abort.is_cancelled() && now_ms() < deadline);
            let (client, data) = (client.id.clone(), client.data.clone());
            Job { folder, adapter, client, data, work: work.clone(), proceed }
        };
        let mut done = turn.run(job(folder, adapter.clone())).await;
        if let Err(EngineError::Runtime(RuntimeError::Artifacts(error))) = &done {
            tracing::warn!(%error, "cached artifacts are damaged, fetching them again");
            let folder = self.pull(task.manifest, true, fetched).await?;
            done = turn.run(job(folder, adapter)).await;
        }
        match done {
            Ok(Done::Evaluated(result)) => Ok(Outcome::Evaluated {
                examples: result.examples,
                loss: result.loss,
                accuracy: result.accuracy,
                seconds: result.seconds,
            }),
            Ok(Done::Trained { result, adapter }) => {
                let bytes = fedpeft_codec::encode(&adapter);
                fedpeft_codec::validate(&bytes, &layout).map_err(Failure::new)?;
                Ok(Outcome::Trained {
                    examples: result.examples,
                    steps: result.steps,
                    loss: result.loss,
                    seconds: result.seconds,
                    adapter: self.payload(bytes, fetched).await?,
                })
            }
            Err(EngineError::Runtime(RuntimeError::Stopped)) => Err(Failure::Stopped),
            Err(error) => Err(Failure::new(error)),
        }
    }

    /// The artifact folder of a task; `verify` hashes what is cached.
    async fn pull(
        &self,
        manifest: Digest,
        verify: bool,
        fetched: &mut Vec<Transfer>,
    ) -> Result<ArtifactFolder, Failure> {
        let pulled = fedpeft_registry::pull(&self.bus, &manifest, &self.cache, verify, |_, _, _| ());
        let pulled = pulled.await.map_err(Failure::new)?;
        fetched.extend(pulled.transfers);
        ArtifactFolder::open(pulled.folder).map_err(Failure::new)
    }

    /// The global adapter of the task, checked.
    async fn adapter(
        &self,
        payload: &Payload,
        layout: &Layout,
        fetched: &mut Vec<Transfer>,
    ) -> Result<Vec<f32>, Failure> {
        let bytes = match payload {
            Payload::Message { digest, data } if Digest::of(data) == *digest => data.clone(),
            Payload::Message { .. } => {
                return Err(Failure::new("the adapter in the task does not have the digest it declares"));
            }
            Payload::Blob { digest, .. } => {
                let (bytes, measured) =
                    self.bus.get_blob(digest, layout.bytes()).await.map_err(Failure::new)?;
                fetched.push(Transfer {
                    direction: Direction::Down,
                    kind: ByteKind::Adapter,
                    size: measured.total,
                });
                bytes
            }
        };
        fedpeft_codec::decode(&bytes, layout).map_err(Failure::new)
    }

    /// The trained adapter, in the update or, where it is too large for a message, in the blob store.
    async fn payload(&self, bytes: Bytes, fetched: &mut Vec<Transfer>) -> Result<Payload, Failure> {
        if bytes.len() + ENVELOPE <= self.bus.max_payload() {
            return Ok(Payload::inline(bytes));
        }
        let size = bytes.len() as u64;
        let stored = self.bus.put_blob(bytes).await.map_err(Failure::new)?;
        let sent = stored.measured.total;
        fetched.push(Transfer { direction: Direction::Up, kind: ByteKind::Adapter, size: sent });
        Ok(Payload::Blob { digest: stored.digest, size })
    }
}

/// A task without a result.
enum Failure {
    /// Told to stop, or out of time.
    Stopped,
    /// One line.
    Reason(String),
}

impl Failure {
    fn new(reason: impl std::fmt::Display) -> Self {
        let line = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Self::Reason(line.chars().take(MAX_REASON).collect())
    }
}
