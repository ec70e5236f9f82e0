//! Central differential privacy of a run: what is promised, and what keeps the promise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validate::{InvalidSpec, at_least_one, check, positive, share};

/// Differential privacy towards everybody but the aggregator (DP-FedAvg, McMahan et al., arXiv 1710.06963): the L2 norm of
/// every client's update is clipped, clients weigh the same, and Gaussian noise is added to the sum. What one client holds
/// then changes what is released by no more than epsilon and delta say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrivacySpec {
    /// Epsilon that the run may spend; it stops before a round that would spend more.
    pub epsilon: f64,
    /// Delta of the promise: well below one over the number of clients.
    pub delta: f64,
    /// L2 norm that updates are clipped to; with `adaptive`, that of the first round.
    pub clip_norm: f64,
    /// Clients that a cohort is sampled from: a round waits until so many are present. Default: `min_clients`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub population: Option<u32>,
    /// Standard deviation of the noise on the sum over the clipping norm. Default: the least with which all rounds of the
    /// run keep to the budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_multiplier: Option<f64>,
    /// How cohorts are sampled.
    #[serde(default)]
    pub sampling: SamplingSpec,
    /// How privacy is accounted for.
    #[serde(default)]
    pub accountant: AccountantSpec,
    /// Adapts the clipping norm from round to round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveSpec>,
}

/// How the cohort of a private round is sampled, by numbers that only the aggregator knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SamplingSpec {
    /// `cohort` of the population, without replacement. Neighbours differ by one client replaced by another.
    #[default]
    Fixed,
    /// Every client of the population with probability `cohort / population`, so that rounds differ in size.
    /// Neighbours differ by one client more or fewer.
    Poisson,
}

/// How privacy is accounted for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccountantSpec {
    /// Renyi differential privacy.
    Rdp,
    /// The privacy random variable: tighter, above all for samples of a fixed size.
    #[default]
    Prv,
}

/// Adaptive clipping (Andrew et al., arXiv 1905.03871): the clipping norm follows a quantile of the updates' norms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveSpec {
    /// Share of the updates that should not be clipped.
    pub quantile: f64,
    /// How fast the norm follows: it changes by at most this factor's exponential in a round.
    pub learning_rate: f64,
    /// Standard deviation of the noise on the count of updates that were not clipped. Default: a twentieth
    /// of the cohort, and no less than the noise multiplier, with which the count takes a seventh of the noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_noise: Option<f64>,
}

impl Default for AdaptiveSpec {
    fn default() -> Self {
        Self { quantile: 0.5, learning_rate: 0.2, count_noise: None }
    }
}

/// Where the privacy of a run stands; part of its record.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PrivacyState {
    /// Standard deviation of the noise on the sum over the clipping norm: that of the specification, or the calibrated one.
    pub noise_multiplier: f64,
    /// L2 norm that the next round's updates are clipped to.
    pub clip_norm: f64,
    /// Epsilon spent so far, at the delta of the specification.
    pub epsilon: f64,
    /// Releases beyond one for each round: of rounds that were closed again after a crash, with other updates or other
    /// noise. They count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub again: u32,
    /// What the open round is about to release, written before it is; none where it has not closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<crate::Digest>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl PrivacySpec {
    /// Checks every number, naming the field and the cure; `sampled` clients get a task in a round.
    pub(crate) fn validate(&self, sampled: u32, population: u32) -> Result<(), InvalidSpec> {
        positive("privacy.epsilon", self.epsilon)?;
        check("privacy.delta", self.delta > 0.0 && self.delta < 1.0, || {
            format!("must lie between 0 and 1, well below one over the population, not {}", self.delta)
        })?;
        positive("privacy.clip_norm", self.clip_norm)?;
        self.noise_multiplier.map_or(Ok(()), |noise| positive("privacy.noise_multiplier", noise))?;
        at_least_one("privacy.population", population)?;
        check("privacy.population", sampled <= population, || {
            format!("is {population}, fewer than the {sampled} clients of a round: raise it")
        })?;
        let Some(adaptive) = &self.adaptive else { return Ok(()) };
        share("privacy.adaptive.quantile", adaptive.quantile)?;
        positive("privacy.adaptive.learning_rate", adaptive.learning_rate)?;
        adaptive.count_noise.map_or(Ok(()), |noise| positive("privacy.adaptive.count_noise", noise))
    }
}

impl AdaptiveSpec {
    /// Standard deviation of the noise on the count, for a cohort of this size and releases of this noise.
    pub fn count_noise(&self, cohort: u32, noise_multiplier: f64) -> f64 {
        self.count_noise.unwrap_or_else(|| noise_multiplier.max(f64::from(cohort) / 20.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> PrivacySpec {
        serde_json::from_value(serde_json::json!({"epsilon": 5.0, "delta": 1e-3, "clip_norm": 1.0})).unwrap()
    }

    #[test]
    fn defaults_are_named_honestly() {
        let spec = spec();
        spec.validate(10, 100).unwrap();
        assert_eq!((spec.sampling, spec.accountant), (SamplingSpec::Fixed, AccountantSpec::Prv));
        assert_eq!(AdaptiveSpec::default().count_noise(100, 1.0), 5.0);
        assert_eq!(AdaptiveSpec::default().count_noise(10, 1.0), 1.0);
    }

    #[test]
    fn every_bad_number_is_named() {
        type Case = (&'static str, fn(&mut PrivacySpec));
        let cases: [Case; 7] = [
            ("privacy.epsilon", |s| s.epsilon = 0.0),
            ("privacy.delta", |s| s.delta = 1.0),
            ("privacy.clip_norm", |s| s.clip_norm = f64::INFINITY),
            ("privacy.noise_multiplier", |s| s.noise_multiplier = Some(0.0)),
            ("privacy.adaptive.quantile", |s| {
                s.adaptive = Some(AdaptiveSpec { quantile: 1.5, ..Default::default() });
            }),
            ("privacy.adaptive.learning_rate", |s| {
                s.adaptive = Some(AdaptiveSpec { learning_rate: -1.0, ..Default::default() });
            }),
            ("privacy.adaptive.count_noise", |s| {
                s.adaptive = Some(AdaptiveSpec { count_noise: Some(0.0), ..Default::default() });
            }),
        ];
        for (field, break_it) in cases {
            let mut broken = spec();
            break_it(&mut broken);
            assert_eq!(broken.validate(10, 100).unwrap_err().field, field);
        }
        assert_eq!(spec().validate(10, 9).unwrap_err().field, "privacy.population");
    }
}
