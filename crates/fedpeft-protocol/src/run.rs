//! A run: what was asked for ([`RunSpec`]) and how far it has come ([`RunRecord`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClientId, Digest, Epoch, ModelName, Round, RunId, round::RoundReport};

use crate::validate::{at_least_one, check, not_negative, positive};
pub use crate::{
    eligibility::Eligibility,
    mode::{ModeSpec, StalenessSpec},
    schedule::{ScheduleSpec, Span, Warmup},
    stability::{DelaySpec, StabilitySpec},
    training::{OptimizerSpec, TrainingSpec},
    validate::InvalidSpec,
};

/// What a run should do. `run.toml` and the control API hold exactly this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// The artifacts to train, as published in the registry.
    pub model: ModelRef,
    /// Rounds to run, at least 1.
    pub rounds: Round,
    /// Cohort: clients sampled for each round (M in the papers).
    pub cohort: u32,
    /// Clients that must be present before a round starts. Default: the cohort.
    #[serde(default)]
    pub min_clients: Option<u32>,
    /// Updates without which a round fails. Default: half of the cohort, rounded up.
    #[serde(default)]
    pub quorum: Option<u32>,
    /// Clients sampled beyond the cohort, as a share of it: `cohort (1 + over_selection)` clients get a task,
    /// rounded up, and the round closes with the first `cohort` updates (Bonawitz et al., arXiv 1902.01046).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub over_selection: f64,
    /// Seconds after which a round closes as soon as it has its quorum. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_deadline_seconds: Option<f64>,
    /// Seconds after which a round closes with the updates it has, or fails below its quorum.
    #[serde(default = "default_deadline")]
    pub round_deadline_seconds: f64,
    /// How rounds follow one another.
    #[serde(default, skip_serializing_if = "ModeSpec::is_synchronous")]
    pub mode: ModeSpec,
    /// Which clients may be sampled.
    #[serde(default, skip_serializing_if = "Eligibility::is_default")]
    pub eligibility: Eligibility,
    /// Updates whose L2 distance from the adapter they began with is greater are refused. Default: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_update_norm: Option<f64>,
    /// Keeps the updates of committed rounds for seven days, so that `fedpeft run verify` can aggregate them again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_updates: bool,
    /// Faults that clients of a simulation should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stability: Option<StabilitySpec>,
    /// What every client does with its task.
    #[serde(default)]
    pub training: TrainingSpec,
    /// How updates become the next global adapter.
    #[serde(default)]
    pub strategy: StrategySpec,
    /// When the global adapter is evaluated.
    #[serde(default)]
    pub evaluation: EvaluationSpec,
    /// Seed of cohort sampling and of every client's shuffling.
    #[serde(default)]
    pub seed: u64,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn default_deadline() -> f64 {
    600.0
}

impl RunSpec {
    /// A run with defaults for all that has one.
    pub fn new(model: ModelRef, rounds: Round, cohort: u32) -> Self {
        Self {
            model,
            rounds,
            cohort,
            min_clients: None,
            quorum: None,
            over_selection: 0.0,
            soft_deadline_seconds: None,
            round_deadline_seconds: default_deadline(),
            mode: ModeSpec::default(),
            eligibility: Eligibility::default(),
            max_update_norm: None,
            keep_updates: false,
            stability: None,
            training: TrainingSpec::default(),
            strategy: StrategySpec::default(),
            evaluation: EvaluationSpec::default(),
            seed: 0,
        }
    }

    /// Updates without which a round fails.
    pub fn quorum(&self) -> u32 {
        self.quorum.unwrap_or(self.cohort.div_ceil(2)).max(1)
    }

    /// Clients that get a task in a round.
    pub fn sampled(&self) -> u32 {
        // A conversion of floats to integers saturates.
        (f64::from(self.cohort) * (1.0 + self.over_selection)).ceil() as u32
    }

    /// Clients that must be present before a round starts.
    pub fn min_clients(&self) -> u32 {
        self.min_clients.unwrap_or(self.cohort)
    }

    /// Checks every number, naming the field and the cure.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        at_least_one("rounds", self.rounds)?;
        at_least_one("cohort", self.cohort)?;
        positive("round_deadline_seconds", self.round_deadline_seconds)?;
        positive("evaluation.deadline_seconds", self.evaluation.deadline_seconds)?;
        self.training.validate()?;
        not_negative("over_selection", self.over_selection)?;
        if let Some(soft) = self.soft_deadline_seconds {
            positive("soft_deadline_seconds", soft)?;
            let hard = self.round_deadline_seconds;
            check("soft_deadline_seconds", soft <= hard, || {
                format!("is {soft}, more than round_deadline_seconds, {hard}: lower it")
            })?;
        }
        self.mode.validate(self.cohort)?;
        self.max_update_norm.map_or(Ok(()), |norm| positive("max_update_norm", norm))?;
        self.stability.as_ref().map_or(Ok(()), StabilitySpec::validate)?;
        if self.quorum() > self.cohort {
            let message = format!("is {}, more than the cohort of {}: lower it", self.quorum(), self.cohort);
            return Err(InvalidSpec::new("quorum", message));
        }
        if self.min_clients() < self.quorum() {
            let message =
                format!("is {}, less than the quorum of {}: raise it", self.min_clients(), self.quorum());
            return Err(InvalidSpec::new("min_clients", message));
        }
        Ok(())
    }
}

/// Artifacts in the registry: a name and a version; the newest version where none is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// Name in the registry.
    pub name: ModelName,
    /// Version, counted from 1.
    #[serde(default)]
    pub version: Option<u32>,
}

/// How updates become the next global adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum StrategySpec {
    /// The mean of the clients' adapters, weighted by their example counts (McMahan et al., arXiv 1602.05629).
    #[default]
    Fedavg,
}

/// Evaluation of the global adapter by a client that offers it ([`crate::presence::Capabilities::evaluates`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationSpec {
    /// Evaluate after every so many rounds, and always after the last; 0 means never.
    pub every: Round,
    /// Seconds to wait for the evaluation; the run goes on without it.
    pub deadline_seconds: f64,
}

impl Default for EvaluationSpec {
    fn default() -> Self {
        Self { every: 1, deadline_seconds: 600.0 }
    }
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunStatus {
    /// Accepted; waiting for clients or for an owner.
    Pending,
    /// Rounds are being run.
    Running,
    /// All rounds are done.
    Completed,
    /// Stopped on request.
    Cancelled,
    /// Stopped by an error that waiting does not cure; `resume` tries again.
    Failed {
        /// One line: what failed and what cures it.
        reason: String,
    },
}

impl RunStatus {
    /// Whether nothing more will happen unless the run is resumed.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }

    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed { .. } => "failed",
        }
    }
}

/// The durable state of a run: the value at key `<run>` of the run bucket, changed only by compare-and-set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunRecord {
    /// Protocol version of the writer.
    pub version: u32,
    /// Name of the run.
    pub run: RunId,
    /// What was asked for.
    pub spec: RunSpec,
    /// Digest of the artifact manifest that [`RunSpec::model`] was resolved to when the run was created.
    pub manifest: Digest,
    /// Where the run stands.
    pub status: RunStatus,
    /// Rounds committed so far.
    pub round: Round,
    /// Blob of the global adapter after [`Self::round`] rounds.
    pub adapter: Digest,
    /// The round that is open, if one is.
    pub open: Option<OpenRound>,
    /// Fencing token of the last writer.
    pub epoch: Epoch,
    /// Hash chain over the ledgers of the committed rounds, see [`crate::ledger`]; of a run without rounds, the
    /// digest of no bytes.
    #[serde(default = "crate::ledger::empty")]
    pub ledger: Digest,
    /// When the run was created, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// When this record was last written, likewise.
    pub updated_ms: u64,
}

/// A round in progress, written before its tasks go out so that a new owner continues it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenRound {
    /// Index of the round.
    pub round: Round,
    /// Fencing token under which it was opened. Its tasks and updates carry it, whoever owns the run later.
    #[serde(default)]
    pub epoch: Epoch,
    /// The sampled clients.
    pub cohort: Vec<ClientId>,
    /// Examples that each of the cohort declared, in its order: the most its update may weigh.
    #[serde(default)]
    pub examples: Vec<u64>,
    /// When it was opened, in milliseconds since the Unix epoch.
    pub opened_ms: u64,
}

/// A run and its rounds, as the control API returns them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunView {
    /// The durable state.
    pub record: RunRecord,
    /// Reports of the committed rounds, in order.
    pub rounds: Vec<RoundReport>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RunSpec {
        serde_json::from_value(serde_json::json!({"model": {"name": "m"}, "rounds": 3, "cohort": 10}))
            .unwrap()
    }

    #[test]
    fn defaults_are_sensible_and_valid() {
        let spec = spec();
        spec.validate().unwrap();
        assert_eq!((spec.quorum(), spec.min_clients()), (5, 10));
        assert_eq!(spec.training.batch_size, 32);
    }

    #[test]
    fn every_bad_number_is_named() {
        type Case = (&'static str, fn(&mut RunSpec));
        let cases: [Case; 11] = [
            ("over_selection", |s| s.over_selection = -0.5),
            ("soft_deadline_seconds", |s| s.soft_deadline_seconds = Some(1e6)),
            ("max_update_norm", |s| s.max_update_norm = Some(0.0)),
            ("stability.dropout", |s| {
                s.stability = Some(StabilitySpec { dropout: 2.0, ..Default::default() });
            }),
            ("mode.buffer", |s| {
                let staleness = StalenessSpec::Constant;
                s.mode = ModeSpec::Buffered { buffer: 11, max_staleness: 1, staleness };
            }),
            ("rounds", |s| s.rounds = 0),
            ("cohort", |s| s.cohort = 0),
            ("training.learning_rate", |s| s.training.learning_rate = f64::NAN),
            ("round_deadline_seconds", |s| s.round_deadline_seconds = 0.0),
            ("quorum", |s| s.quorum = Some(11)),
            ("min_clients", |s| s.min_clients = Some(1)),
        ];
        for (field, break_it) in cases {
            let mut broken = spec();
            break_it(&mut broken);
            assert_eq!(broken.validate().unwrap_err().field, field);
        }
    }

    #[test]
    fn misspelt_fields_are_refused() {
        let text = serde_json::json!({"model": {"name": "m"}, "rounds": 3, "cohort": 10, "cohrot": 1});
        assert!(serde_json::from_value::<RunSpec>(text).is_err());
    }
}
