//! What the updates of a round come to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    run::{OptimizerSpec, TrainingSpec},
    schedule::ScheduleSpec,
    validate::{InvalidSpec, at_least_one, check, positive},
};

/// What the updates of a round come to; the strategy then makes the server's step towards it.
///
/// The rules that say "kept" need all updates of a round at once: the aggregator keeps them in a file of as many bytes as
/// they have together until the round closes. All others take memory that does not depend on the cohort.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AggregationSpec {
    /// The mean of the adapters, weighted by examples (FedAvg, McMahan et al., arXiv 1602.05629).
    #[default]
    Mean,
    /// The mean of the updates per local step, times the mean number of steps, so that clients that make more steps do
    /// not pull the global adapter towards their own optimum (FedNova, Wang et al., arXiv 2007.07481). For SGD.
    Fednova,
    /// The weighted mean of updates that are scaled down to an L2 norm (Sun et al., arXiv 1911.07963).
    ClippedMean {
        /// Most that an update's L2 norm may be.
        norm: f64,
    },
    /// The mean of LoRA's updates `B A`, weighted by examples, split into factors of the adapter's rank again; the mean of
    /// all else (FlexLoRA, Bai et al., arXiv 2402.11505). The aggregator holds 16 bytes for each weight of the tuned layers.
    LoraProduct,
    /// The mean of all values, factors of LoRA too, weighted by examples; what the mean of the updates `B A` has beyond the
    /// product of mean factors is kept beside the adapter and goes to every client, so that nothing of it is lost (FedEx-LoRA,
    /// Singhal et al., arXiv 2410.09432). For artifacts of LoRA with residuals. The aggregator holds 16 bytes for each weight
    /// of the tuned layers.
    LoraExact,
    /// The median of every value, unweighted; kept (Yin et al., arXiv 1803.01498).
    Median,
    /// The mean of every value without the smallest and the largest, unweighted; kept (Yin et al., arXiv 1803.01498).
    TrimmedMean {
        /// Share of the updates left out at each end, below one half.
        #[serde(default = "tenth")]
        trim: f64,
    },
    /// The updates that lie closest to their neighbours; kept (Blanchard et al., NeurIPS 2017).
    Krum {
        /// Clients that may lie (f in the paper); a round needs at least `2 f + 3` updates.
        byzantine: u32,
        /// Updates whose weighted mean is taken: 1 is Krum, more is Multi-Krum.
        #[serde(default = "one")]
        keep: u32,
    },
    /// The point with the least sum of distances to the updates, weighted by examples; kept (RFA, Pillutla et al., arXiv
    /// 1912.13445).
    GeometricMedian {
        /// Iterations of the smoothed Weiszfeld algorithm.
        #[serde(default = "few")]
        iterations: u32,
        /// Distance below which an update counts as if it were so far away.
        #[serde(default = "close")]
        smoothing: f64,
    },
}

fn tenth() -> f64 {
    0.1
}

fn one() -> u32 {
    1
}

fn few() -> u32 {
    8
}

fn close() -> f64 {
    1e-6
}

impl AggregationSpec {
    /// Whether this is the default.
    pub fn is_mean(&self) -> bool {
        *self == Self::Mean
    }

    /// Its name, where it averages the updates of LoRA rather than their factors.
    pub fn products(&self) -> Option<&'static str> {
        match self {
            Self::LoraProduct => Some("lora_product"),
            Self::LoraExact => Some("lora_exact"),
            _ => None,
        }
    }

    /// Fewest updates of a round that it can work with.
    pub fn least_updates(&self) -> u32 {
        match *self {
            Self::TrimmedMean { trim } => {
                // As many as leave one after trimming: n > 2 ceil(trim n).
                (1..=u32::from(u16::MAX)).find(|n| *n > 2 * (trim * f64::from(*n)).ceil() as u32).unwrap_or(1)
            }
            Self::Krum { byzantine, keep } => {
                byzantine.saturating_mul(2).saturating_add(3).max(keep.saturating_add(byzantine))
            }
            Self::Mean
            | Self::Fednova
            | Self::ClippedMean { .. }
            | Self::LoraProduct
            | Self::LoraExact
            | Self::Median
            | Self::GeometricMedian { .. } => 1,
        }
    }

    /// Checks every number, and that the training is of a kind that it knows.
    pub(crate) fn validate(&self, training: &TrainingSpec) -> Result<(), InvalidSpec> {
        match *self {
            Self::Mean | Self::LoraProduct | Self::LoraExact | Self::Median => Ok(()),
            Self::Fednova => {
                let is_sgd = matches!(training.optimizer, OptimizerSpec::Sgd { .. });
                check("aggregation", is_sgd, || {
                    "fednova is for training.optimizer.kind = \"sgd\": the steps of others have no common length".to_owned()
                })?;
                let is_constant =
                    training.schedule == ScheduleSpec::default() && training.clip_norm.is_none();
                check("aggregation", is_constant, || {
                    "fednova is for a constant learning rate without training.clip_norm".to_owned()
                })
            }
            Self::ClippedMean { norm } => positive("aggregation.norm", norm),
            Self::TrimmedMean { trim } => check("aggregation.trim", (0.0..0.5).contains(&trim), || {
                format!("must lie in [0, 0.5), not {trim}")
            }),
            Self::Krum { keep, .. } => at_least_one("aggregation.keep", keep),
            Self::GeometricMedian { iterations, smoothing } => {
                at_least_one("aggregation.iterations", iterations)?;
                check("aggregation.iterations", iterations <= 1000, || {
                    format!("must be at most 1000, not {iterations}: it converges within a few")
                })?;
                positive("aggregation.smoothing", smoothing)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_say_how_many_updates_they_need() {
        let trimmed = |trim| AggregationSpec::TrimmedMean { trim }.least_updates();
        assert_eq!((trimmed(0.0), trimmed(0.1), trimmed(0.4)), (1, 3, 5));
        assert_eq!(AggregationSpec::Krum { byzantine: 1, keep: 1 }.least_updates(), 5);
        assert_eq!(AggregationSpec::Krum { byzantine: 1, keep: 9 }.least_updates(), 10);
        assert_eq!(AggregationSpec::Median.least_updates(), 1);
    }

    #[test]
    fn every_bad_number_is_named() {
        let training = TrainingSpec::default();
        let field = |spec: AggregationSpec| spec.validate(&training).unwrap_err().field;
        assert_eq!(field(AggregationSpec::ClippedMean { norm: 0.0 }), "aggregation.norm");
        assert_eq!(field(AggregationSpec::TrimmedMean { trim: 0.5 }), "aggregation.trim");
        assert_eq!(field(AggregationSpec::Krum { byzantine: 1, keep: 0 }), "aggregation.keep");
        let median = |iterations, smoothing| AggregationSpec::GeometricMedian { iterations, smoothing };
        assert_eq!(field(median(0, 1.0)), "aggregation.iterations");
        assert_eq!(field(median(5, f64::NAN)), "aggregation.smoothing");
        // The default optimizer is AdamW.
        assert_eq!(field(AggregationSpec::Fednova), "aggregation");
    }
}
