//! A run: what was asked for ([`RunSpec`]) and how far it has come ([`RunRecord`]).

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ClientId, Digest, Epoch, ModelName, Round, RunId,
    pipeline::Pipeline,
    round::{RoundReport, Update},
    secure::OpenSecure,
};

use crate::validate::{at_least_one, check, not_negative, positive};
pub use crate::{
    aggregation::AggregationSpec,
    dp_sgd::{DpSgdSpec, ExampleSampling},
    eligibility::Eligibility,
    mode::{ModeSpec, StalenessSpec},
    privacy::{AccountantSpec, AdaptiveSpec, PrivacySpec, PrivacyState, SamplingSpec},
    schedule::{ScheduleSpec, Span, Warmup},
    secure::{MaskGraph, SecureSpec},
    stability::{DelaySpec, StabilitySpec},
    strategy::StrategySpec,
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
    /// Updates without which a round fails. Default: half of those that close it, rounded up; with secure aggregation, all
    /// but the share that may drop out.
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
    /// Keeps the clients' adapters of committed rounds in the blob store, by the digests in the ledger, so that
    /// `fedpeft run verify` can aggregate them again. Whoever may read blobs can then read single updates.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_updates: bool,
    /// How clients' adapters are encoded on their way to the aggregator. Default: not at all.
    #[serde(default, skip_serializing_if = "Pipeline::is_plain")]
    pub uplink: Pipeline,
    /// How the global adapter is encoded on its way to the clients; what they make of it is the global adapter.
    /// Default: not at all.
    #[serde(default, skip_serializing_if = "Pipeline::is_plain")]
    pub downlink: Pipeline,
    /// Faults that clients of a simulation should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stability: Option<StabilitySpec>,
    /// What every client does with its task.
    #[serde(default)]
    pub training: TrainingSpec,
    /// What the updates of a round come to.
    #[serde(default, skip_serializing_if = "AggregationSpec::is_mean")]
    pub aggregation: AggregationSpec,
    /// The step that the server makes towards it: the next global adapter.
    #[serde(default)]
    pub strategy: StrategySpec,
    /// Differential privacy of the clients. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<PrivacySpec>,
    /// Secure aggregation: the aggregator learns the sum of the updates and no single one. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_aggregation: Option<SecureSpec>,
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
            uplink: Pipeline::default(),
            downlink: Pipeline::default(),
            stability: None,
            training: TrainingSpec::default(),
            aggregation: AggregationSpec::default(),
            strategy: StrategySpec::default(),
            privacy: None,
            secure_aggregation: None,
            evaluation: EvaluationSpec::default(),
            seed: 0,
        }
    }

    /// Updates without which a round fails: none where samples are of any size, and an empty one is noise like any other.
    pub fn quorum(&self) -> u32 {
        if self.is_poisson() {
            return self.quorum.unwrap_or(0);
        }
        if let Some(secure) = &self.secure_aggregation {
            return self.quorum.unwrap_or_else(|| secure.quorum(self.cohort));
        }
        let least = self.aggregation.least_updates();
        self.quorum.unwrap_or(self.target().div_ceil(2).max(least)).max(1)
    }

    /// Whether a round's cohort is of any size.
    pub fn is_poisson(&self) -> bool {
        self.privacy.as_ref().is_some_and(|privacy| privacy.sampling == SamplingSpec::Poisson)
    }

    /// Clients that cohorts are sampled from: as many as have to be present.
    pub fn population(&self) -> u32 {
        let private = self.privacy.as_ref().and_then(|privacy| privacy.population);
        private.unwrap_or(self.min_clients.unwrap_or(self.cohort))
    }

    /// Updates that close a round.
    pub fn target(&self) -> u32 {
        match self.mode {
            ModeSpec::Synchronous => self.cohort,
            ModeSpec::Buffered { buffer, .. } => buffer,
        }
    }

    /// Clients that get a task in a round.
    pub fn sampled(&self) -> u32 {
        // A conversion of floats to integers saturates.
        (f64::from(self.cohort) * (1.0 + self.over_selection)).ceil() as u32
    }

    /// Clients that must be present before a round starts.
    pub fn min_clients(&self) -> u32 {
        let least = self.min_clients.unwrap_or(self.cohort);
        if self.privacy.is_some() { least.max(self.population()) } else { least }
    }

    /// Whether something is evaluated in this round: after every so many, and after the last.
    pub fn evaluates(&self, round: Round) -> bool {
        let every = self.evaluation.every;
        every > 0 && (round.is_multiple_of(every) || round == self.rounds)
    }

    /// Whether clients evaluate their own models, and nobody the global adapter.
    pub fn is_personal(&self) -> bool {
        self.evaluation.personal.unwrap_or(!self.training.local.is_empty())
    }

    /// Whether updates may have less LoRA rank than the adapter: a mean of products takes them as they are. What a client
    /// keeps between rounds, and the noise of DP-SGD, are for all values.
    pub fn mixes_ranks(&self) -> bool {
        self.aggregation == AggregationSpec::LoraProduct
            && !self.has_memory()
            && self.training.dp_sgd.is_none()
    }

    /// Whether clients keep something between the rounds of the run.
    pub fn has_memory(&self) -> bool {
        !self.training.local.is_empty() || self.scaffold_population().is_some() || self.uplink.feedback()
    }

    /// Clients that take part in the run, where its strategy is SCAFFOLD.
    pub fn scaffold_population(&self) -> Option<u32> {
        match self.strategy {
            StrategySpec::Scaffold { population, .. } => {
                Some(population.unwrap_or(self.min_clients.unwrap_or(self.cohort)))
            }
            _ => None,
        }
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
        // Thousands of reserves for each client sampled are a slip of the pen.
        check("over_selection", self.over_selection <= 1000.0, || {
            format!("must be at most 1000, not {}", self.over_selection)
        })?;
        self.eligibility.validate()?;
        self.mode.validate(self.cohort)?;
        self.aggregation.validate(&self.training)?;
        self.strategy.validate()?;
        self.max_update_norm.map_or(Ok(()), |norm| positive("max_update_norm", norm))?;
        check("downlink", !self.downlink.delta(), || {
            "has stage delta, but a client that was not sampled lacks the adapter before: leave delta out"
                .to_owned()
        })?;
        self.stability.as_ref().map_or(Ok(()), StabilitySpec::validate)?;
        let (quorum, target) = (self.quorum(), self.target());
        let buffered = !self.mode.is_synchronous();
        let of = if buffered { "buffer" } else { "cohort" };
        let least = self.aggregation.least_updates();
        check("aggregation", least <= target, || {
            format!("needs {least} updates, a round has {target}: raise the {of}")
        })?;
        check("quorum", quorum <= target, || {
            format!("is {quorum}, more than the {of} of {target}: lower it")
        })?;
        let global = self.evaluation.personal == Some(false) && self.evaluation.every > 0;
        check("evaluation.personal", self.training.local.is_empty() || !global, || {
            "is false, but no evaluator has the tensors of training.local: set it to true, or evaluation.every to 0"
                .to_owned()
        })?;
        check("strategy", !buffered || self.strategy == StrategySpec::Fedavg, || {
            "of buffered rounds must be fedavg: they make steps of their own".to_owned()
        })?;
        check("aggregation", !buffered || self.aggregation.is_mean(), || {
            "of buffered rounds must be mean: they weigh updates by their staleness".to_owned()
        })?;
        let products = self.aggregation.products();
        check("strategy", products.is_none() || self.strategy == StrategySpec::Fedavg, || {
            let kind = products.unwrap_or_default();
            format!("of aggregation {kind} must be fedavg: factors of two rounds have no common moments")
        })?;
        check("quorum", self.aggregation.is_mean() || quorum >= least, || {
            format!("is {quorum}, the aggregation needs at least {least} updates: raise it")
        })?;
        self.scaffold_population().map_or(Ok(()), |population| self.validate_scaffold(population))?;
        self.privacy.as_ref().map_or(Ok(()), |privacy| self.validate_private(privacy))?;
        self.secure_aggregation.as_ref().map_or(Ok(()), |secure| self.validate_secure(secure))?;
        check("over_selection", !buffered || self.over_selection == 0.0, || {
            "is for synchronous rounds: buffered ones have cohort and buffer".to_owned()
        })?;
        if self.min_clients() < self.quorum() {
            let message =
                format!("is {}, less than the quorum of {}: raise it", self.min_clients(), self.quorum());
            return Err(InvalidSpec::new("min_clients", message));
        }
        Ok(())
    }

    /// Checks what goes with SCAFFOLD: a control variate is the mean gradient of plain steps.
    fn validate_scaffold(&self, population: u32) -> Result<(), InvalidSpec> {
        let TrainingSpec { optimizer, clip_norm, proximal_mu, dp_sgd, .. } = &self.training;
        let plain = matches!(optimizer, OptimizerSpec::Sgd { momentum: 0.0, .. });
        check("training.optimizer", plain, || {
            "of strategy scaffold must be sgd without momentum: set optimizer = { kind = \"sgd\" }".to_owned()
        })?;
        check("strategy", clip_norm.is_none() && dp_sgd.is_none() && *proximal_mu == 0.0, || {
            "scaffold corrects the gradient itself: leave out clip_norm, dp_sgd and proximal_mu of [run.training]"
                .to_owned()
        })?;
        check("strategy", self.aggregation.is_mean() && self.privacy.is_none(), || {
            "scaffold takes an unweighted mean: leave out [run.aggregation] and [run.privacy]".to_owned()
        })?;
        let sampled = self.sampled();
        check("strategy.population", population >= sampled, || {
            format!("is {population}, fewer than the {sampled} clients of a round: name all that take part")
        })
    }

    /// Checks what goes with differential privacy.
    fn validate_private(&self, privacy: &PrivacySpec) -> Result<(), InvalidSpec> {
        privacy.validate(self.sampled(), self.population())?;
        check("privacy", self.mode.is_synchronous(), || {
            "is for synchronous rounds: buffered ones have no sample that could be accounted for".to_owned()
        })?;
        check("privacy", self.aggregation.is_mean(), || {
            "clips and weighs updates itself: leave out [run.aggregation]".to_owned()
        })?;
        check("privacy", !self.keep_updates, || {
            "and keep_updates contradict each other: kept updates can be read without noise".to_owned()
        })?;
        check("uplink", !self.uplink.feedback(), || {
            "remembers what it leaves out, which no accountant covers: append +forget to topk or randk"
                .to_owned()
        })?;
        let is_poisson = privacy.sampling == SamplingSpec::Poisson;
        check("over_selection", !is_poisson || self.over_selection == 0.0, || {
            "is for samples of a fixed size: with privacy.sampling = \"poisson\" raise the cohort".to_owned()
        })
    }

    /// Checks what goes with secure aggregation: nobody sees a single update, so nothing may need one.
    fn validate_secure(&self, secure: &SecureSpec) -> Result<(), InvalidSpec> {
        secure.validate()?;
        check("cohort", self.cohort >= 2, || {
            "is 1, and a sum of one update says all of it: secure_aggregation is for 2 clients and more"
                .to_owned()
        })?;
        check("secure_aggregation", self.mode.is_synchronous(), || {
            "is for synchronous rounds: leave out [run.mode]".to_owned()
        })?;
        check("secure_aggregation", self.aggregation.is_mean(), || {
            "gives the mean of all updates and nothing else: leave out [run.aggregation]; its clients clip with \
             secure_aggregation.norm"
                .to_owned()
        })?;
        check("secure_aggregation", self.scaffold_population().is_none(), || {
            "has no sum of control variates: use another strategy than scaffold".to_owned()
        })?;
        self.privacy.as_ref().map_or(Ok(()), |privacy| validate_private_sum(privacy, secure))?;
        check("training.local", self.training.local.is_empty(), || {
            "keeps tensors by the digest of a plain update, which secure_aggregation has not: leave it out"
                .to_owned()
        })?;
        check("max_update_norm", self.max_update_norm.is_none(), || {
            "needs single updates, which secure_aggregation hides: leave it out; secure_aggregation.norm has clients \
             scale theirs down"
                .to_owned()
        })?;
        check("keep_updates", !self.keep_updates, || {
            "needs single updates, which secure_aggregation hides: leave it out".to_owned()
        })?;
        check("uplink", self.uplink.is_plain(), || {
            "encodes single updates, which secure_aggregation packs itself: leave it out, and lower \
             secure_aggregation.precision to send less"
                .to_owned()
        })?;
        check("over_selection", self.over_selection == 0.0, || {
            "closes a round without clients that trained; secure_aggregation has dropout instead: leave it out"
                .to_owned()
        })?;
        let (quorum, cohort) = (self.quorum(), self.cohort);
        check("quorum", 2 * quorum > cohort, || {
            format!(
                "is {quorum}, and secure_aggregation needs more than half of the cohort of {cohort}: raise it"
            )
        })
    }
}

/// Checks what goes with sums whose noise comes from the clients.
fn validate_private_sum(privacy: &PrivacySpec, secure: &SecureSpec) -> Result<(), InvalidSpec> {
    check("privacy.sampling", privacy.sampling == SamplingSpec::Fixed, || {
        "is poisson, and cohorts of secure_aggregation have a size: set it to \"fixed\"".to_owned()
    })?;
    check("privacy.adaptive", privacy.adaptive.is_none(), || {
        "counts single updates, which secure_aggregation hides: leave it out".to_owned()
    })?;
    check("secure_aggregation.norm", secure.norm.is_none(), || {
        "is privacy.clip_norm in private runs: leave it out".to_owned()
    })
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

/// Evaluation of the global adapter by a client that offers it ([`crate::presence::Capabilities::evaluates`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationSpec {
    /// Evaluate after every so many rounds, and always after the last; 0 means never.
    pub every: Round,
    /// Seconds to wait for the evaluation; the run goes on without it.
    pub deadline_seconds: f64,
    /// Whether instead every training client evaluates its own model, after training and on examples that it holds
    /// back (`client_holdout` of its data), so that no evaluator is asked. Default: where `training.local` keeps
    /// tensors at the clients, for then nobody else has the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personal: Option<bool>,
}

impl Default for EvaluationSpec {
    fn default() -> Self {
        Self { every: 1, deadline_seconds: 600.0, personal: None }
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
    /// Blob that clients get instead, where the run has a downlink: they decode it to the global adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Encoded>,
    /// Blob of what the strategy keeps between rounds, where it keeps anything and a round is committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moments: Option<Digest>,
    /// Blob of the server's control variate, where the strategy is SCAFFOLD. Like adapters, those of earlier rounds stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Digest>,
    /// Blob of what the factors of [`Self::adapter`] do not hold, where the aggregation is [`AggregationSpec::LoraExact`] and
    /// a round is committed: before, it is zero. Like adapters, those of earlier rounds stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<Digest>,
    /// Where the privacy of the run stands, where it promises any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<PrivacyState>,
    /// The round that is open, if one is. Copies share it: it names its whole cohort.
    pub open: Option<Arc<OpenRound>>,
    /// On the broker of an edge: what the run works for. Its rounds then end with sums of updates, its global adapters come
    /// from upstream, and rounds may be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Upstream>,
    /// Of buffered rounds: clients that train since an earlier round and whose updates still count, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carried: Vec<Carried>,
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

/// A blob that holds an encoded adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Encoded {
    /// Name of the blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
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
    /// Those of the cohort that are edges: they answer with sums.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<ClientId>,
    /// When it was opened, in milliseconds since the Unix epoch.
    pub opened_ms: u64,
    /// How far it has come, where the run has secure aggregation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<OpenSecure>,
}

/// The newest task from upstream that an edge has begun for a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Upstream {
    /// Its name.
    pub task: String,
    /// Its round.
    pub round: Round,
    /// Its fencing token.
    pub epoch: Epoch,
    /// How far it has come.
    pub state: UpstreamState,
}

/// How far an upstream task has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum UpstreamState {
    /// There is no answer yet.
    Begun,
    /// This is the answer, whatever happens from now on; it must still be sent.
    Answered {
        /// The answer. A sum is not in it: it lies in a blob until it is sent.
        update: Box<Update>,
        /// That blob: the sum, and 32 bytes that are those of no other run.
        #[serde(default)]
        kept: Option<Digest>,
    },
    /// The upstream broker has stored the answer.
    Sent,
}

/// A client of a buffered round that has not answered yet, as it is taken over into later rounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Carried {
    /// The client.
    pub client: ClientId,
    /// The round in which it got its task; its update is published under it.
    pub round: Round,
    /// Fencing token of its task.
    pub epoch: Epoch,
    /// Examples it declared then.
    pub examples: u64,
    /// The global adapter it began with.
    pub adapter: Digest,
    /// When nobody waits for it any more, in milliseconds since the Unix epoch.
    pub deadline_ms: u64,
}

/// A run and its rounds, as the control API returns them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunView {
    /// The durable state.
    pub record: RunRecord,
    /// Reports of the committed rounds, in order; without their clients, where a reply with them would not fit a message.
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
        let cases: [Case; 16] = [
            ("over_selection", |s| s.over_selection = -0.5),
            ("over_selection", |s| s.over_selection = 1e9),
            ("soft_deadline_seconds", |s| s.soft_deadline_seconds = Some(1e6)),
            ("max_update_norm", |s| s.max_update_norm = Some(0.0)),
            ("stability.dropout", |s| {
                s.stability = Some(StabilitySpec { dropout: 2.0, ..Default::default() });
            }),
            ("mode.buffer", |s| {
                let staleness = StalenessSpec::Constant;
                s.mode = ModeSpec::Buffered { buffer: 11, max_staleness: 1, staleness };
            }),
            ("training.optimizer", |s| {
                s.strategy = StrategySpec::Scaffold { learning_rate: 1.0, population: None };
            }),
            ("strategy", |s| {
                s.strategy = StrategySpec::Scaffold { learning_rate: 1.0, population: None };
                s.training.optimizer =
                    OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
                s.training.proximal_mu = 0.1;
            }),
            ("strategy.population", |s| {
                s.strategy = StrategySpec::Scaffold { learning_rate: 1.0, population: Some(9) };
                s.training.optimizer =
                    OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
            }),
            ("evaluation.personal", |s| {
                s.training.local = vec!["head.*".into()];
                s.evaluation.personal = Some(false);
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
