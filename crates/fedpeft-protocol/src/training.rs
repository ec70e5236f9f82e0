//! What a client does with the global adapter in one round.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    dp_sgd::DpSgdSpec,
    schedule::ScheduleSpec,
    validate::{InvalidSpec, at_least_one, check, decay, not_negative, positive},
};

/// Local training of one client in one round. A step descends the mean gradient of its batch, to which the
/// proximal term is added, which is clipped, and which the optimizer then makes a step of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingSpec {
    /// Passes over the client's examples.
    pub local_epochs: u32,
    /// Examples per optimizer step; the last batch of an epoch may be smaller.
    pub batch_size: u32,
    /// Micro-batches that a batch is computed in, one after the other, their gradients accumulated: it takes the
    /// memory of `batch_size / accumulate` examples, and only draws of dropout differ. At most `batch_size`.
    #[serde(skip_serializing_if = "is_one")]
    pub accumulate: u32,
    /// Learning rate.
    pub learning_rate: f64,
    /// How the learning rate changes from step to step.
    #[serde(skip_serializing_if = "ScheduleSpec::is_default")]
    pub schedule: ScheduleSpec,
    /// Optimizer; its state starts at zero in every round (clients are stateless between rounds).
    pub optimizer: OptimizerSpec,
    /// Most that the Euclidean norm of the gradient of all adapter tensors together may be; a longer one is
    /// scaled down to it, as PyTorch's `clip_grad_norm_` does. Without it, nothing is clipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Differential privacy of every example; without it, there is none. It takes the place of `clip_norm`, and needs
    /// artifacts that were built for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dp_sgd: Option<DpSgdSpec>,
    /// FedProx (Li et al., arXiv 1812.06127): `mu` of the proximal term `mu / 2 |w - w_global|^2` of the loss,
    /// where `w_global` is the adapter at the start of the round. 0 is FedAvg.
    #[serde(skip_serializing_if = "is_zero")]
    pub proximal_mu: f64,
    /// Tensors of the adapter that never leave a client, as globs over their names: `["head.*"]` is a personal head
    /// (FedPer, Arivazhagan et al., arXiv 1912.00818), the names of the norms are FedBN (Li et al., arXiv 2102.07623).
    /// They begin as in the artifacts' checkpoint, and a client goes on with what it had after its last update that
    /// counts. Each glob must match a tensor, and one tensor must be left to share.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub local: Vec<String>,
    /// Clients compute what the frozen backbone makes of their examples once, and keep it in memory for all epochs and rounds:
    /// for artifacts that train a head alone. It costs 4 bytes for each value that the head reads of an example.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cache_features: bool,
}

/// Most globs of local tensors.
const MAX_GLOBS: usize = 64;
/// Longest of them, in bytes.
const MAX_GLOB: usize = 256;

fn is_one(value: &u32) -> bool {
    *value == 1
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Default for TrainingSpec {
    fn default() -> Self {
        Self {
            local_epochs: 1,
            batch_size: 32,
            accumulate: 1,
            learning_rate: 1e-3,
            schedule: ScheduleSpec::default(),
            optimizer: OptimizerSpec::default(),
            clip_norm: None,
            dp_sgd: None,
            proximal_mu: 0.0,
            local: Vec::new(),
            cache_features: false,
        }
    }
}

impl TrainingSpec {
    /// Checks every number, naming the field and the cure.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        at_least_one("training.local_epochs", self.local_epochs)?;
        at_least_one("training.batch_size", self.batch_size)?;
        at_least_one("training.accumulate", self.accumulate)?;
        let (parts, whole) = (self.accumulate, self.batch_size);
        check("training.accumulate", parts <= whole, || {
            format!("is {parts}, more than the batch_size of {whole}: lower it")
        })?;
        positive("training.learning_rate", self.learning_rate)?;
        self.schedule.validate()?;
        self.optimizer.validate()?;
        self.clip_norm.map_or(Ok(()), |norm| positive("training.clip_norm", norm))?;
        check("training.local", self.local.len() <= MAX_GLOBS, || {
            format!(
                "has {} globs: at most {MAX_GLOBS}, of which each may match many tensors",
                self.local.len()
            )
        })?;
        check("training.local", self.local.iter().all(|glob| (1..=MAX_GLOB).contains(&glob.len())), || {
            format!("holds an empty glob or one of more than {MAX_GLOB} bytes")
        })?;
        if let Some(dp_sgd) = &self.dp_sgd {
            dp_sgd.validate()?;
            check("training.cache_features", !self.cache_features, || {
                "cannot be used with dp_sgd, whose graph reads examples: leave it out".to_owned()
            })?;
            check("training.clip_norm", self.clip_norm.is_none(), || {
                "cannot be used with dp_sgd, which clips every example: remove it, and set dp_sgd.clip_norm"
                    .to_owned()
            })?;
        }
        not_negative("training.proximal_mu", self.proximal_mu)
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
        match *self {
            Self::Sgd { momentum, nesterov, weight_decay } => {
                decay("training.optimizer.momentum", momentum)?;
                check("training.optimizer.nesterov", !nesterov || momentum > 0.0, || {
                    "needs a momentum greater than 0".to_owned()
                })?;
                not_negative("training.optimizer.weight_decay", weight_decay)
            }
            Self::Adamw { beta1, beta2, epsilon, weight_decay } => {
                decay("training.optimizer.beta1", beta1)?;
                decay("training.optimizer.beta2", beta2)?;
                not_negative("training.optimizer.epsilon", epsilon)?;
                not_negative("training.optimizer.weight_decay", weight_decay)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dp_sgd::ExampleSampling,
        schedule::{Span, Warmup},
    };

    fn dp_sgd() -> DpSgdSpec {
        let sampling = ExampleSampling::Poisson;
        DpSgdSpec { clip_norm: 1.0, noise_multiplier: 1.1, sampling, delta: 1e-5, epsilon: None }
    }

    #[test]
    fn private_training_is_checked_and_read_with_defaults() {
        let read: TrainingSpec =
            serde_json::from_str(r#"{"dp_sgd": {"clip_norm": 1.0, "noise_multiplier": 1.1}}"#).unwrap();
        assert_eq!(read.dp_sgd, Some(dp_sgd()));
        let refused = |change: fn(&mut TrainingSpec)| {
            let mut spec = read.clone();
            change(&mut spec);
            spec.validate().unwrap_err().field
        };
        read.validate().unwrap();
        assert_eq!(refused(|t| t.clip_norm = Some(1.0)), "training.clip_norm");
        assert_eq!(
            refused(|t| t.dp_sgd = Some(DpSgdSpec { clip_norm: 0.0, ..dp_sgd() })),
            "training.dp_sgd.clip_norm"
        );
        assert_eq!(
            refused(|t| t.dp_sgd = Some(DpSgdSpec { noise_multiplier: 0.0, ..dp_sgd() })),
            "training.dp_sgd.noise_multiplier"
        );
        assert_eq!(
            refused(|t| t.dp_sgd = Some(DpSgdSpec { delta: 1.0, ..dp_sgd() })),
            "training.dp_sgd.delta"
        );
        let broke = TrainingSpec { dp_sgd: Some(DpSgdSpec { epsilon: Some(f64::NAN), ..dp_sgd() }), ..read };
        assert_eq!(broke.validate().unwrap_err().field, "training.dp_sgd.epsilon");
    }

    #[test]
    fn every_bad_number_is_named() {
        type Case = (&'static str, fn(&mut TrainingSpec));
        let sgd = |momentum, nesterov| OptimizerSpec::Sgd { momentum, nesterov, weight_decay: 0.0 };
        let cosine = |floor| ScheduleSpec::Cosine { warmup: Warmup::default(), floor, span: Span::Round };
        let warm = |fraction| ScheduleSpec::Constant { warmup: Warmup::Fraction(fraction), span: Span::Run };
        let cases: [Case; 10] = [
            ("training.local_epochs", |t| t.local_epochs = 0),
            ("training.batch_size", |t| t.batch_size = 0),
            ("training.accumulate", |t| t.accumulate = 0),
            ("training.accumulate", |t| t.accumulate = 33),
            ("training.learning_rate", |t| t.learning_rate = f64::NAN),
            ("training.clip_norm", |t| t.clip_norm = Some(0.0)),
            ("training.clip_norm", |t| t.clip_norm = Some(f64::NAN)),
            ("training.proximal_mu", |t| t.proximal_mu = -1.0),
            ("training.local", |t| t.local = vec![String::new()]),
            ("training.local", |t| t.local = vec!["x".into(); 65]),
        ];
        for (field, break_it) in cases {
            let mut broken = TrainingSpec::default();
            break_it(&mut broken);
            assert_eq!(broken.validate().unwrap_err().field, field);
        }
        let with = |optimizer| TrainingSpec { optimizer, ..Default::default() };
        assert_eq!(with(sgd(1.0, false)).validate().unwrap_err().field, "training.optimizer.momentum");
        assert_eq!(with(sgd(0.0, true)).validate().unwrap_err().field, "training.optimizer.nesterov");
        let with = |schedule| TrainingSpec { schedule, ..Default::default() };
        for floor in [-0.1, 1.1, f64::NAN] {
            assert_eq!(with(cosine(floor)).validate().unwrap_err().field, "training.schedule.floor");
        }
        let error = with(warm(1.5)).validate().unwrap_err();
        assert_eq!(error.field, "training.schedule.warmup.fraction");
        TrainingSpec { accumulate: 32, clip_norm: Some(1.0), ..with(warm(0.1)) }.validate().unwrap();
    }

    #[test]
    fn defaults_are_not_written_and_what_is_written_is_read() {
        let plain = TrainingSpec::default();
        let text = serde_json::to_string(&plain).unwrap();
        for field in
            ["accumulate", "schedule", "clip_norm", "dp_sgd", "proximal_mu", "local", "cache_features"]
        {
            assert!(!text.contains(&format!("{field:?}")), "{text}");
        }
        let full = TrainingSpec {
            accumulate: 4,
            clip_norm: Some(1.0),
            proximal_mu: 0.01,
            local: vec!["head.*".into()],
            schedule: ScheduleSpec::Linear { warmup: Warmup::Fraction(0.1), floor: 0.0, span: Span::Run },
            ..plain.clone()
        };
        for spec in [plain, full] {
            let json = serde_json::to_vec(&spec).unwrap();
            assert_eq!(serde_json::from_slice::<TrainingSpec>(&json).unwrap(), spec);
            let packed = rmp_serde::to_vec_named(&spec).unwrap();
            assert_eq!(rmp_serde::from_slice::<TrainingSpec>(&packed).unwrap(), spec);
        }
    }
}
