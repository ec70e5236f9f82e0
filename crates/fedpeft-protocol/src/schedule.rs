//! How the learning rate changes from step to step.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validate::{InvalidSpec, share};

/// The learning rate as a multiple of [`crate::run::TrainingSpec::learning_rate`].
///
/// At optimizer step `t`, counted from 0, of the `T` steps of the [`Span`], with `W` steps of [`Warmup`], the
/// factor is `t / W` while `t < W`. After that it is `floor + (1 - floor) d`, where `p = (t - W) / (T - W)` is
/// the progress since and `d` is what each schedule says. These are the schedules of PyTorch's `LambdaLR` with
/// `get_constant_schedule_with_warmup`, `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup`
/// of Hugging Face transformers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ScheduleSpec {
    /// `d = 1`.
    Constant {
        /// Steps on the way to the full rate.
        #[serde(default)]
        warmup: Warmup,
        /// Steps that the warm-up is counted in.
        #[serde(default)]
        span: Span,
    },
    /// `d = 1 - p`.
    Linear {
        /// Steps on the way to the full rate.
        #[serde(default)]
        warmup: Warmup,
        /// Share of the full rate at the end of the span.
        #[serde(default)]
        floor: f64,
        /// Steps that the schedule extends over.
        #[serde(default)]
        span: Span,
    },
    /// `d = (1 + cos(pi p)) / 2` (Loshchilov and Hutter, arXiv 1608.03983, without restarts).
    Cosine {
        /// Steps on the way to the full rate.
        #[serde(default)]
        warmup: Warmup,
        /// Share of the full rate at the end of the span.
        #[serde(default)]
        floor: f64,
        /// Steps that the schedule extends over.
        #[serde(default)]
        span: Span,
    },
}

/// Steps in which the rate rises from 0. One that is longer than the span never ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Warmup {
    /// So many optimizer steps.
    Steps(u32),
    /// This share of the span's steps, rounded up.
    Fraction(f64),
}

impl Default for Warmup {
    fn default() -> Self {
        Self::Steps(0)
    }
}

/// The steps that a schedule extends over. A client keeps nothing between rounds, so its place is computed from
/// the task alone: with `S` optimizer steps of its own in one round, those of round `r` (counted from 1) of `R`
/// are `0..S` of `S` within the round, and `(r - 1) S .. r S` of `R S` within the run. Clients with different
/// numbers of examples are thus equally far at the start of every round, and a client that is not sampled does
/// not fall behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Span {
    /// One round: every round starts anew.
    #[default]
    Round,
    /// All rounds of the run.
    Run,
}

impl Default for ScheduleSpec {
    fn default() -> Self {
        Self::Constant { warmup: Warmup::default(), span: Span::default() }
    }
}

impl ScheduleSpec {
    /// Steps on the way to the full rate.
    pub fn warmup(&self) -> Warmup {
        match *self {
            Self::Constant { warmup, .. } | Self::Linear { warmup, .. } | Self::Cosine { warmup, .. } => {
                warmup
            }
        }
    }

    /// Steps that the schedule extends over.
    pub fn span(&self) -> Span {
        match *self {
            Self::Constant { span, .. } | Self::Linear { span, .. } | Self::Cosine { span, .. } => span,
        }
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidSpec> {
        if let Warmup::Fraction(fraction) = self.warmup() {
            share("training.schedule.warmup.fraction", fraction)?;
        }
        match *self {
            Self::Constant { .. } => Ok(()),
            Self::Linear { floor, .. } | Self::Cosine { floor, .. } => {
                share("training.schedule.floor", floor)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ScheduleSpec, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn schedules_are_read_as_documented() {
        let cosine = r#"{"kind": "cosine", "warmup": {"fraction": 0.1}, "floor": 0.05, "span": "run"}"#;
        let wanted = ScheduleSpec::Cosine { warmup: Warmup::Fraction(0.1), floor: 0.05, span: Span::Run };
        assert_eq!(parse(cosine).unwrap(), wanted);
        let linear = r#"{"kind": "linear", "warmup": {"steps": 10}}"#;
        let wanted = ScheduleSpec::Linear { warmup: Warmup::Steps(10), floor: 0.0, span: Span::Round };
        assert_eq!(parse(linear).unwrap(), wanted);
        assert_eq!(parse(r#"{"kind": "constant"}"#).unwrap(), ScheduleSpec::default());
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for text in [
            r#"{"kind": "cosine", "warm_up": {"steps": 3}}"#,
            r#"{"kind": "constant", "floor": 0.1}"#,
            r#"{"kind": "linear", "warmup": {"steps": 3, "fraction": 0.1}}"#,
            r#"{"kind": "linear", "warmup": {"steps": -1}}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
