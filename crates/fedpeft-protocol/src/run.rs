//! A run: what was asked for ([`RunSpec`]) and how far it has come ([`RunRecord`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClientId, Digest, Epoch, ModelName, Round, RunId, round::RoundReport};

use crate::validate::{at_least_one, positive};
pub use crate::{
    schedule::{ScheduleSpec, Span, Warmup},
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
    /// Seconds after which a round closes with the updates it has.
    #[serde(default = "default_deadline")]
    pub round_deadline_seconds: f64,
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

fn default_deadline() -> f64 {
    600.0
}

impl RunSpec {
    /// Updates without which a round fails.
    pub fn quorum(&self) -> u32 {
        self.quorum.unwrap_or(self.cohort.div_ceil(2)).max(1)
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
        let cases: [Case; 6] = [
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
