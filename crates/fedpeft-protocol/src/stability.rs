//! Client stability as an experiment: how reliable the clients of a simulated federation are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validate::{InvalidSpec, check, not_negative, positive, share};

/// `[stability]` of `run.toml`: what happens to clients, drawn for every client and round from a seed.
///
/// In each round a client is available with probability `participation`; only available clients can be sampled.
/// A sampled client then drops out with probability `dropout`, else crashes and comes back with probability
/// `crash`, and answers after `delay`. The draws depend on seed, round and client alone, so that a run can be
/// repeated on any machine (client stability is the first axis of Sun et al., arXiv 2210.01708).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StabilitySpec {
    /// Probability that a client is available in a round, in (0, 1].
    pub participation: f64,
    /// Probability that a sampled client takes its task and never answers.
    pub dropout: f64,
    /// Probability that a sampled client crashes in the middle of its training and goes on after `restart_seconds`.
    pub crash: f64,
    /// Seconds between a crash and the client's return.
    pub restart_seconds: f64,
    /// Seconds by which an answer is late.
    pub delay: DelaySpec,
    /// Seed of all draws. Default: the seed of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Default for StabilitySpec {
    fn default() -> Self {
        Self {
            participation: 1.0,
            dropout: 0.0,
            crash: 0.0,
            restart_seconds: 1.0,
            delay: DelaySpec::None,
            seed: None,
        }
    }
}

/// Distribution of a delay in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum DelaySpec {
    /// No delay.
    #[default]
    None,
    /// Always the same.
    Fixed {
        /// The delay.
        seconds: f64,
    },
    /// Uniform between two bounds.
    Uniform {
        /// The least delay.
        min: f64,
        /// The greatest.
        max: f64,
    },
    /// Exponential.
    Exponential {
        /// Its mean.
        mean: f64,
    },
    /// Log-normal: the usual model of stragglers, with a long tail.
    Lognormal {
        /// Its median.
        median: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
    },
}

impl StabilitySpec {
    /// Checks every number, naming the field and the cure.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        positive("stability.participation", self.participation)?;
        share("stability.participation", self.participation)?;
        share("stability.dropout", self.dropout)?;
        share("stability.crash", self.crash)?;
        not_negative("stability.restart_seconds", self.restart_seconds)?;
        match self.delay {
            DelaySpec::None => Ok(()),
            DelaySpec::Fixed { seconds } => not_negative("stability.delay.seconds", seconds),
            DelaySpec::Uniform { min, max } => {
                not_negative("stability.delay.min", min)?;
                not_negative("stability.delay.max", max)?;
                check("stability.delay.max", min <= max, || {
                    format!("is {max}, less than min, {min}: raise it")
                })
            }
            DelaySpec::Exponential { mean } => not_negative("stability.delay.mean", mean),
            DelaySpec::Lognormal { median, sigma } => {
                not_negative("stability.delay.median", median)?;
                not_negative("stability.delay.sigma", sigma)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_number_is_named() {
        type Case = (&'static str, fn(&mut StabilitySpec));
        let cases: [Case; 6] = [
            ("stability.participation", |s| s.participation = 0.0),
            ("stability.participation", |s| s.participation = 1.5),
            ("stability.dropout", |s| s.dropout = f64::NAN),
            ("stability.crash", |s| s.crash = -0.1),
            ("stability.restart_seconds", |s| s.restart_seconds = -1.0),
            ("stability.delay.max", |s| s.delay = DelaySpec::Uniform { min: 2.0, max: 1.0 }),
        ];
        for (field, break_it) in cases {
            let mut broken = StabilitySpec::default();
            break_it(&mut broken);
            assert_eq!(broken.validate().unwrap_err().field, field);
        }
        StabilitySpec::default().validate().unwrap();
    }
}
