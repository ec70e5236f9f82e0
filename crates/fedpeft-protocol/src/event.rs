//! Events: what happened, for the exporter, the CLI's live view and people. Facts that matter for recovery
//! are in the run bucket; losing events loses sight, not state.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ClientId, Epoch, Round, RunId,
    round::{ClientReport, RoundReport},
    run::RunStatus,
    secure::SecureStage,
};

/// One event of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Protocol version of the sender.
    pub version: u32,
    /// The run.
    pub run: RunId,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Fencing token of the owner of the run that says so; 0 where nobody drives it.
    #[serde(default)]
    pub epoch: Epoch,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// The run changed its status.
    Status {
        /// The new status.
        status: RunStatus,
        /// PEFT method of its artifacts.
        method: String,
        /// Rounds asked for.
        rounds: Round,
        /// Trainable values: the adapter's size.
        adapter_values: u64,
        /// Values of the whole backbone: what full fine-tuning would send.
        backbone_values: u64,
    },
    /// A run waits for clients.
    Waiting {
        /// Present and eligible clients.
        present: u32,
        /// Clients needed.
        needed: u32,
    },
    /// A round was opened and its tasks sent.
    RoundOpened {
        /// The round.
        round: Round,
        /// The cohort.
        cohort: Vec<ClientId>,
    },
    /// A client's update is in the sum.
    UpdateAccepted {
        /// The round.
        round: Round,
        /// The client.
        client: ClientId,
        /// Its examples.
        examples: u64,
        /// Its training loss.
        loss: f64,
        /// Seconds it trained.
        seconds: f64,
        /// Size of its message in bytes.
        size: u64,
    },
    /// Updates of clients are in the sum, one after another: a round may have many. Readers are told of each as
    /// [`Self::UpdateAccepted`].
    UpdatesAccepted {
        /// The round.
        round: Round,
        /// The updates.
        updates: Vec<AcceptedUpdate>,
    },
    /// A client's update was refused and does not reach the sum.
    UpdateRejected {
        /// The round it was for.
        round: Round,
        /// The client.
        client: ClientId,
        /// Why.
        reason: String,
    },
    /// A stage of secure aggregation has ended.
    SecureStageClosed {
        /// The round.
        round: Round,
        /// The stage.
        stage: SecureStage,
        /// Clients that answered in time.
        clients: u32,
        /// Clients that were asked.
        asked: u32,
    },
    /// Clients of a committed round whose report does not fit a message: [`Self::RoundClosed`] follows, without them.
    RoundClients {
        /// The round.
        round: Round,
        /// Some of its clients, in the order of the report.
        clients: Vec<ClientReport>,
    },
    /// A round was committed.
    RoundClosed {
        /// What happened in it. Its `loss` and `accuracy` are set where the round was evaluated. Its clients are here, or
        /// in the [`Self::RoundClients`] before it.
        report: Box<RoundReport>,
    },
}

/// An update in the sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AcceptedUpdate {
    /// The client.
    pub client: ClientId,
    /// Its examples.
    pub examples: u64,
    /// Its training loss.
    pub loss: f64,
    /// Seconds it trained.
    pub seconds: f64,
    /// Size of its message in bytes.
    pub size: u64,
}

impl EventKind {
    /// Last token of the event's subject.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Waiting { .. } => "waiting",
            Self::RoundOpened { .. } => "round_opened",
            Self::UpdateAccepted { .. } => "update_accepted",
            Self::UpdatesAccepted { .. } => "updates_accepted",
            Self::UpdateRejected { .. } => "update_rejected",
            Self::SecureStageClosed { .. } => "secure_stage_closed",
            Self::RoundClients { .. } => "round_clients",
            Self::RoundClosed { .. } => "round_closed",
        }
    }
}
