//! One round: the task a client gets, the update it returns, and the report of what happened.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ClientId, Digest, Epoch, Round, RunId, bounds,
    pipeline::Pipeline,
    run::{PrivacyState, RunSpec, StabilitySpec, TrainingSpec},
    secure::{SecureReport, SecureStage, SecureTrained},
};

/// What a client should do now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// Protocol version of the sender.
    pub version: u32,
    /// Run the task belongs to.
    pub run: RunId,
    /// Round the task belongs to.
    pub round: Round,
    /// Fencing token of the run's owner; the update returns it.
    pub epoch: Epoch,
    /// Name of this task; the update returns it.
    #[serde(deserialize_with = "bounds::text::<512, _>")]
    pub task: String,
    /// Blob of the artifact manifest.
    pub manifest: Digest,
    /// The global adapter.
    pub adapter: Payload,
    /// How it is encoded.
    #[serde(default, skip_serializing_if = "Pipeline::is_plain")]
    pub downlink: Pipeline,
    /// What its LoRA factors do not hold of the mean updates, as plain values, where there is something: the model has it in
    /// addition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<Payload>,
    /// What to do with it.
    pub work: Work,
    /// After this moment (milliseconds since the Unix epoch, by the sender's clock) nobody waits for the update.
    pub deadline_ms: u64,
    /// Milliseconds from the moment the task was sent to [`Self::deadline_ms`]. The client measures them by its own
    /// monotonic clock from the first receipt on, so that no two clocks need to agree. 0 is a sender that does
    /// not say: then the client's clock must be right.
    #[serde(default)]
    pub lifetime_ms: u64,
}

/// What to do with the global adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "a process holds as many as it has tasks, few")]
pub enum Work {
    /// Train it on the client's examples.
    Train {
        /// How.
        training: TrainingSpec,
        /// Seed of the run; the client derives its own from it, the round and its name.
        seed: u64,
        /// Rounds of the run, for learning rates that depend on how far it is. A sender that does not say
        /// means that this round is the last.
        #[serde(default)]
        rounds: Round,
        /// Faults to simulate; a client does so only if its operator allows it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stability: Option<StabilitySpec>,
        /// Whether an update may have less LoRA rank than the adapter.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ranks: bool,
        /// How the trained adapter is to be encoded.
        #[serde(default, skip_serializing_if = "Pipeline::is_plain")]
        uplink: Pipeline,
        /// What a client needs to know that keeps something between rounds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory: Option<MemoryTask>,
        /// Whether to evaluate the trained model on examples that the client holds back.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        personal: bool,
        /// Parameters of a secure aggregation. The trained adapter then is not sent: the answer is the one of
        /// [`SecureStage::Advertise`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secure: Option<Payload>,
    },
    /// Take part in a stage of secure aggregation after the first.
    Secure {
        /// Which.
        stage: SecureStage,
        /// Digest of the client's answer in the stage before: who gave another one has been restarted, and is out.
        after: Digest,
        /// A request of `fedpeft-secagg`.
        request: Payload,
    },
    /// Measure loss and accuracy on the client's held-out examples.
    Evaluate,
    /// Have the clients behind this one train it, and return the sum of their updates: for an edge, that is a client with
    /// [`crate::presence::Capabilities::aggregates`].
    Aggregate {
        /// The run, as the edge's own clients should see it.
        spec: Box<RunSpec>,
        /// Most examples that the sum may weigh: what the edge declared.
        examples: u64,
    },
}

/// What a client needs to know that keeps something between the rounds of a run: local tensors, or a control variate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryTask {
    /// Digest of the client's last update that counts in this run: it goes on with what it had after that one. None
    /// does yet: it begins as everybody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<Digest>,
    /// The server's control variate, where the strategy is SCAFFOLD: encoded as the adapter is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Payload>,
}

impl Work {
    /// One word for logs and task names.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Train { .. } => "train",
            Self::Secure { stage, .. } => stage.work(),
            Self::Evaluate => "evaluate",
            Self::Aggregate { .. } => "aggregate",
        }
    }
}

impl Task {
    /// The global adapter, and what comes in its shape or beside it.
    pub fn payloads(&self) -> impl Iterator<Item = &Payload> {
        let control = match &self.work {
            Work::Train { memory: Some(memory), .. } => memory.control.as_ref(),
            Work::Train { .. } | Work::Secure { .. } | Work::Evaluate | Work::Aggregate { .. } => None,
        };
        [Some(&self.adapter), self.residual.as_ref(), control].into_iter().flatten()
    }
}

/// Adapter bytes: in the message while they fit, in the blob store when they do not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "in", rename_all = "snake_case")]
pub enum Payload {
    /// Here.
    Message {
        /// Digest of `data`.
        digest: Digest,
        /// Encoded adapter, see `fedpeft-codec`.
        #[serde(with = "binary")]
        #[schemars(with = "Vec<u8>")]
        data: Bytes,
    },
    /// In the object store: that of blobs for a task, that of uploads (under the client and the round) for an
    /// update.
    Blob {
        /// Name of the blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
}

/// `serde_bytes`, but JSON's arrays of numbers are accepted as well.
mod binary {
    use super::Bytes;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(data)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        serde_bytes::deserialize::<Vec<u8>, D>(deserializer).map(Bytes::from)
    }
}

impl Payload {
    /// Wraps bytes that travel in the message.
    pub fn inline(data: impl Into<Bytes>) -> Self {
        let data = data.into();
        Self::Message { digest: Digest::of(&data), data }
    }

    /// Digest of the bytes, as declared.
    pub fn digest(&self) -> Digest {
        match self {
            Self::Message { digest, .. } | Self::Blob { digest, .. } => *digest,
        }
    }

    /// Size of the bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Message { data, .. } => data.len() as u64,
            Self::Blob { size, .. } => *size,
        }
    }

    /// Bytes that lie in the message.
    pub fn held(&self) -> usize {
        match self {
            Self::Message { data, .. } => data.len(),
            Self::Blob { .. } => 0,
        }
    }
}

/// What a client returns. Run, round and client are in its subject, which the broker guards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Update {
    /// Protocol version of the sender.
    pub version: u32,
    /// Fencing token of the task.
    pub epoch: Epoch,
    /// Name of the task.
    #[serde(deserialize_with = "bounds::text::<512, _>")]
    pub task: String,
    /// What came of it.
    pub outcome: Outcome,
    /// Bytes the client fetched for this task beside the task message itself (backbone, artifacts, blobs).
    #[serde(default, deserialize_with = "bounds::list::<1024, _, _>")]
    pub fetched: Vec<Transfer>,
}

impl Update {
    /// What it holds in the shape of the adapter.
    pub fn payloads(&self) -> impl Iterator<Item = &Payload> {
        let payloads = match &self.outcome {
            Outcome::Trained { adapter, control, .. } => [Some(adapter), control.as_ref()],
            Outcome::Aggregated { sum, .. } => [Some(sum), None],
            Outcome::Secured { stage: SecureStage::Mask, message, .. } => [Some(message), None],
            Outcome::Secured { .. } | Outcome::Evaluated { .. } | Outcome::Failed { .. } => [None, None],
        };
        payloads.into_iter().flatten()
    }

    /// The update without the bytes of its payloads, for which their digests and sizes stand.
    pub fn named(&self) -> Self {
        let mut named = self.clone();
        let payloads = match &mut named.outcome {
            Outcome::Trained { adapter, control, .. } => [Some(adapter), control.as_mut()],
            Outcome::Aggregated { sum, .. } => [Some(sum), None],
            Outcome::Secured { message, .. } => [Some(message), None],
            Outcome::Evaluated { .. } | Outcome::Failed { .. } => [None, None],
        };
        for payload in payloads.into_iter().flatten() {
            *payload = Payload::Blob { digest: payload.digest(), size: payload.size() };
        }
        named
    }
}

/// What came of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Outcome {
    /// The adapter was trained.
    Trained {
        /// Examples of the client: its weight in the mean.
        examples: u64,
        /// Optimizer steps taken.
        steps: u64,
        /// Mean training loss over the last local epoch; 0 where `epsilon` is told, for a loss would tell of the
        /// examples without noise.
        loss: f64,
        /// Seconds spent training.
        seconds: f64,
        /// The trained adapter, without local tensors.
        adapter: Payload,
        /// What the client's own model came to, where the task asked for it and the client holds examples back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        personal: Option<Personal>,
        /// What the client's control variate changed by, where the strategy is SCAFFOLD: encoded as the adapter is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        control: Option<Payload>,
        /// What the client's examples have cost so far in this run, at the delta of its `dp_sgd`, as the client counts;
        /// none where training is not private.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epsilon: Option<f64>,
    },
    /// The adapter was evaluated.
    Evaluated {
        /// Held-out examples.
        examples: u64,
        /// Mean loss.
        loss: f64,
        /// Share of right predictions, 0 to 1; none where there are none to be right, as in regression.
        #[serde(default)]
        accuracy: Option<f64>,
        /// Seconds spent.
        seconds: f64,
    },
    /// An edge's clients trained the adapter.
    Aggregated {
        /// Updates in the sum.
        updates: u64,
        /// Their examples: the weight of the sum.
        examples: u64,
        /// Mean of their training losses, weighted by examples.
        loss: f64,
        /// The longest time any of them trained, in seconds.
        seconds: f64,
        /// The sum, see `Accumulator::write_partial` of `fedpeft-strategy`.
        sum: Payload,
    },
    /// The client took part in a stage of secure aggregation.
    Secured {
        /// Which.
        stage: SecureStage,
        /// A message of `fedpeft-secagg`. That of [`SecureStage::Mask`] is as large as an adapter, and may lie in the store
        /// of uploads.
        message: Payload,
        /// Of [`SecureStage::Advertise`]: how training went.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trained: Option<SecureTrained>,
    },
    /// The client could not do it; the round need not wait.
    Failed {
        /// One line: what failed.
        reason: String,
    },
}

/// A client's own model, on examples that it holds back from training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Personal {
    /// Examples held back.
    pub examples: u64,
    /// Mean loss.
    pub loss: f64,
    /// Share of right predictions, 0 to 1; none where there are none to be right, as in regression.
    #[serde(default)]
    pub accuracy: Option<f64>,
}

impl Outcome {
    /// One word for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Trained { .. } => "trained",
            Self::Evaluated { .. } => "evaluated",
            Self::Aggregated { .. } => "aggregated",
            Self::Secured { .. } => "secured",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Kinds of bytes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ByteKind {
    /// Adapter values.
    Adapter,
    /// Frozen backbone weights.
    Backbone,
    /// Training graphs, manifest, initial checkpoint.
    Artifacts,
    /// Messages that ask for an evaluation of the global adapter and answer it, the adapter in them included.
    Evaluation,
    /// Everything else of a message: its envelope, and what its body holds beside an adapter.
    Control,
}

impl ByteKind {
    /// All kinds, in the order of reports.
    pub const ALL: [Self; 5] =
        [Self::Adapter, Self::Backbone, Self::Artifacts, Self::Evaluation, Self::Control];

    /// The kind as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Adapter => "adapter",
            Self::Backbone => "backbone",
            Self::Artifacts => "artifacts",
            Self::Evaluation => "evaluation",
            Self::Control => "control",
        }
    }
}

/// Direction of bytes, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Client to aggregator.
    Up,
    /// Aggregator (or blob store) to client.
    Down,
}

impl Direction {
    /// The direction as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Bytes that crossed the wire: `size` counts subject, headers and payload of the messages they took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// What they were.
    pub kind: ByteKind,
    /// How many.
    pub size: u64,
    /// Of these, bodies of messages; 0 from a sender that does not say.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub payload: u64,
}

/// What became of one sampled client in one round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum ClientOutcome {
    /// Its update is in the sum.
    Accepted {
        /// Digest of the encoded adapter it sent; in secure aggregation, of its masked update.
        digest: Digest,
        /// Name of the update: that of the task it answers. No name counts twice in a run.
        #[serde(default)]
        update: String,
        /// Its weight in the sum; 0 where that is masked, as in secure aggregation.
        #[serde(default)]
        weight: u64,
        /// Rounds between the adapter it began with and the one it changed; 0 in synchronous rounds.
        #[serde(default)]
        staleness: Round,
    },
    /// Its update was refused.
    Rejected {
        /// Why.
        reason: String,
    },
    /// It reported that it could not do its task.
    Failed {
        /// Why, in its words.
        reason: String,
    },
    /// Nothing came before the round closed.
    Dropped,
    /// The round had as many updates as it wanted before this client's came: it was sampled as a reserve.
    Surplus,
    /// It still trains, and its update counts in a later round.
    Training,
}

impl ClientOutcome {
    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Rejected { .. } => "rejected",
            Self::Failed { .. } => "failed",
            Self::Dropped => "dropped",
            Self::Surplus => "surplus",
            Self::Training => "training",
        }
    }
}

/// One sampled client in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClientReport {
    /// The client.
    pub client: ClientId,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: ClientOutcome,
    /// Its examples: its weight in the mean; 0 unless accepted.
    pub examples: u64,
    /// Bytes from the client: messages with their subjects and headers, and blobs.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
    /// Both, split as in [`RoundReport::bytes_by_kind`].
    #[serde(default, skip_serializing_if = "BytesByKind::is_empty")]
    pub bytes_by_kind: BytesByKind,
    /// Mean training loss over its last local epoch; none where it is withheld, see `epsilon`.
    pub loss: Option<f64>,
    /// Seconds it trained.
    pub train_seconds: f64,
    /// What its own model came to, where the run asks for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personal: Option<Personal>,
    /// Updates in the sum that it sent, if it is an edge; 0 for a client that sent an update of its own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub updates: u64,
    /// What its examples have cost so far in this run where it trains with `dp_sgd`, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Bytes of one direction and kind.
pub type BytesByKind = std::collections::BTreeMap<String, u64>;

/// Seconds spent in the phases of a round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseSeconds {
    /// Sampling the cohort among present clients.
    pub select: f64,
    /// Encoding and publishing tasks, and taking the updates that come meanwhile.
    pub broadcast: f64,
    /// The longest time any accepted client reported for training.
    pub train: f64,
    /// From the last task published to the last update taken, without `train`.
    pub collect: f64,
    /// Folding, dividing, storing and committing the next global adapter.
    pub aggregate: f64,
    /// Waiting for the evaluation of the new global adapter.
    pub evaluate: f64,
    /// The whole round.
    pub total: f64,
}

/// What happened in one committed round: the value at key `<run>.<round>` of the run bucket.
// Its writer need not hold the clients of a large cohort as a list: whatever is serialized as one will do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RoundReport")]
pub struct RoundReport<C = Vec<ClientReport>> {
    /// Index of the round.
    pub round: Round,
    /// Mean held-out loss of the new global adapter, where it was evaluated; where clients evaluate their own models,
    /// that of the accepted ones, weighted by the examples they hold back.
    pub loss: Option<f64>,
    /// Held-out accuracy, 0 to 1, likewise; none where the task has none, as in regression.
    pub accuracy: Option<f64>,
    /// Mean of the accepted clients' training losses, weighted by examples; 0 where they withhold them (`dp_sgd`).
    pub train_loss: f64,
    /// Bytes from all clients of the cohort.
    pub bytes_up: u64,
    /// Bytes to all clients of the cohort.
    pub bytes_down: u64,
    /// Both, split: keys are `up.adapter`, `up.control`, `down.adapter`, `down.backbone`, ...; and beside them what the
    /// evaluation took, `up.evaluation` and `down.evaluation`.
    pub bytes_by_kind: BytesByKind,
    /// Of these, bodies of messages: the rest is envelopes, that is subjects and headers.
    #[serde(default, skip_serializing_if = "BytesByKind::is_empty")]
    pub payload_by_kind: BytesByKind,
    /// The cohort, sorted by name.
    pub clients: C,
    /// What the round did for privacy and what is spent after it, where the run promises any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<PrivacyState>,
    /// What was secure about it, where the run has secure aggregation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<SecureReport>,
    /// Where the time went.
    pub seconds: PhaseSeconds,
    /// Digest of the global adapter before the round.
    #[serde(default = "crate::ledger::empty")]
    pub previous: Digest,
    /// Digest of the new global adapter.
    pub adapter: Digest,
    /// Digest of what its LoRA factors do not hold, where the run keeps that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<Digest>,
    /// Fencing token of the owner that committed the round.
    #[serde(default)]
    pub epoch: Epoch,
    /// Hash chain over the ledgers of all rounds up to this one, see [`crate::ledger`].
    #[serde(default = "crate::ledger::empty")]
    pub ledger: Digest,
}

impl<C> RoundReport<C> {
    /// The report with other clients, or another form of them.
    pub fn with_clients<D>(self, clients: D) -> RoundReport<D> {
        let Self {
            round,
            loss,
            accuracy,
            train_loss,
            bytes_up,
            bytes_down,
            bytes_by_kind,
            payload_by_kind,
            clients: _,
            privacy,
            secure,
            seconds,
            previous,
            adapter,
            residual,
            epoch,
            ledger,
        } = self;
        RoundReport {
            round,
            loss,
            accuracy,
            train_loss,
            bytes_up,
            bytes_down,
            bytes_by_kind,
            payload_by_kind,
            clients,
            privacy,
            secure,
            seconds,
            previous,
            adapter,
            residual,
            epoch,
            ledger,
        }
    }
}
