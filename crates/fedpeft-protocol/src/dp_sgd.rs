//! Differential privacy of a client's examples.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validate::{InvalidSpec, check, positive};

/// DP-SGD on the client (Abadi et al., arXiv 1607.00133): the gradient of every example is clipped, and Gaussian noise is
/// added to their sum before the optimizer sees it. What leaves the client then tells little of any one example, to
/// the aggregator as well. The client keeps count of what that cost, and draws sample and noise from its operating
/// system's entropy, never from the run's seed: the aggregator could take such noise off again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DpSgdSpec {
    /// Most that the Euclidean norm of one example's gradient of all adapter tensors together may be; a longer one is
    /// scaled down to it.
    pub clip_norm: f64,
    /// Standard deviation of the noise on every value of the sum, as a multiple of `clip_norm`.
    pub noise_multiplier: f64,
    /// How the examples of a step are drawn.
    #[serde(default)]
    pub sampling: ExampleSampling,
    /// Probability that the promise of `epsilon` does not hold: well below one over a client's examples.
    #[serde(default = "delta")]
    pub delta: f64,
    /// Most that all of a client's training in the run may cost; a client that cannot keep within it refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
}

/// How the examples of a step are drawn, on which depends what a step costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExampleSampling {
    /// Each independently with probability `batch_size / examples`, so that batches differ in size and may be empty. An
    /// epoch has as many steps as it has batches. This is what the amplification of privacy by sampling is proved for.
    #[default]
    Poisson,
    /// A permutation cut into batches, as without privacy. Nothing is amplified: an epoch costs as much as one step on all
    /// examples.
    Shuffle,
}

fn delta() -> f64 {
    1e-5
}

impl DpSgdSpec {
    pub(crate) fn validate(&self) -> Result<(), InvalidSpec> {
        positive("training.dp_sgd.clip_norm", self.clip_norm)?;
        positive("training.dp_sgd.noise_multiplier", self.noise_multiplier)?;
        check("training.dp_sgd.delta", self.delta > 0.0 && self.delta < 1.0, || {
            format!("must lie between 0 and 1, not {}", self.delta)
        })?;
        self.epsilon.map_or(Ok(()), |epsilon| positive("training.dp_sgd.epsilon", epsilon))
    }
}
