//! A run: what was asked for ([`RunSpec`]) and how far it has come ([`RunRecord`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ClientId, Digest, Epoch, ModelName, Round, RunId, round::RoundReport};

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
        let training = &self.training;
        let positive = |field: &'static str, value: f64| {
            let valid = value.is_finite() && value > 0.0;
            if valid {
                Ok(())
            } else {
                Err(InvalidSpec::new(field, format!("must be greater than 0, not {value}")))
            }
        };
        let at_least_one = |field: &'static str, value: u32| {
            if value >= 1 {
                Ok(())
            } else {
                Err(InvalidSpec::new(field, "must be at least 1, not 0".to_owned()))
            }
        };
        at_least_one("rounds", self.rounds)?;
        at_least_one("cohort", self.cohort)?;
        at_least_one("training.local_epochs", training.local_epochs)?;
        at_least_one("training.batch_size", training.batch_size)?;
        positive("round_deadline_seconds", self.round_deadline_seconds)?;
        positive("training.learning_rate", training.learning_rate)?;
        positive("evaluation.deadline_seconds", self.evaluation.deadline_seconds)?;
        training.optimizer.validate()?;
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

/// A field of a [`RunSpec`] that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct InvalidSpec {
    /// Path of the field.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl InvalidSpec {
    fn new(field: &'static str, message: String) -> Self {
        Self { field, message }
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

/// Local training of one client in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingSpec {
    /// Passes over the client's examples.
    pub local_epochs: u32,
    /// Examples per optimizer step; the last batch of an epoch may be smaller.
    pub batch_size: u32,
    /// Learning rate.
    pub learning_rate: f64,
    /// Optimizer; its state starts at zero in every round (clients are stateless between rounds).
    pub optimizer: OptimizerSpec,
}

impl Default for TrainingSpec {
    fn default() -> Self {
        Self { local_epochs: 1, batch_size: 32, learning_rate: 1e-3, optimizer: OptimizerSpec::default() }
    }
}

/// Optimizer and its constants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerSpec {
    /// Stochastic gradient descent, as in PyTorch: `d = g + weight_decay p; v = momentum v + d;
    /// p -= lr (nesterov ? d + momentum v : v)`, with `v = d` at the first step.
    Sgd {
        /// Momentum in `[0, 1)`.
        #[serde(default)]
        momentum: f64,
        /// Nesterov's form of momentum.
        #[serde(default)]
        nesterov: bool,
        /// L2 penalty.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).
    Adamw {
        /// Decay of the first moment.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the second moment.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Term that keeps the denominator from zero.
        #[serde(default = "epsilon")]
        epsilon: f64,
        /// Decoupled weight decay.
        #[serde(default)]
        weight_decay: f64,
    },
}

fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn epsilon() -> f64 {
    1e-8
}

impl Default for OptimizerSpec {
    fn default() -> Self {
        Self::Adamw { beta1: beta1(), beta2: beta2(), epsilon: epsilon(), weight_decay: 0.0 }
    }
}

impl OptimizerSpec {
    fn validate(&self) -> Result<(), InvalidSpec> {
        let fraction = |field: &'static str, value: f64| {
            let valid = (0.0..1.0).contains(&value);
            if valid {
                Ok(())
            } else {
                Err(InvalidSpec::new(field, format!("must lie in [0, 1), not {value}")))
            }
        };
        let not_negative = |field: &'static str, value: f64| {
            let valid = value.is_finite() && value >= 0.0;
            if valid {
                Ok(())
            } else {
                Err(InvalidSpec::new(field, format!("must not be negative, but is {value}")))
            }
        };
        match *self {
            Self::Sgd { momentum, weight_decay, .. } => {
                fraction("training.optimizer.momentum", momentum)?;
                not_negative("training.optimizer.weight_decay", weight_decay)
            }
            Self::Adamw { beta1, beta2, epsilon, weight_decay } => {
                fraction("training.optimizer.beta1", beta1)?;
                fraction("training.optimizer.beta2", beta2)?;
                not_negative("training.optimizer.epsilon", epsilon)?;
                not_negative("training.optimizer.weight_decay", weight_decay)
            }
        }
    }
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
        let cases: [Case; 9] = [
            ("rounds", |s| s.rounds = 0),
            ("cohort", |s| s.cohort = 0),
            ("training.local_epochs", |s| s.training.local_epochs = 0),
            ("training.batch_size", |s| s.training.batch_size = 0),
            ("training.learning_rate", |s| s.training.learning_rate = f64::NAN),
            ("round_deadline_seconds", |s| s.round_deadline_seconds = 0.0),
            ("quorum", |s| s.quorum = Some(11)),
            ("min_clients", |s| s.min_clients = Some(1)),
            ("training.optimizer.momentum", |s| {
                s.training.optimizer =
                    OptimizerSpec::Sgd { momentum: 1.0, nesterov: false, weight_decay: 0.0 };
            }),
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
