//! How updates become the next global adapter.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::validate::{InvalidSpec, decay, positive};

/// How updates become the next global adapter. All but SCAFFOLD take what the updates come to, see
/// [`crate::run::AggregationSpec`]; the server optimizers then make a step along its difference from the present global adapter (Reddi et al.,
/// arXiv 2003.00295), and keep their moments between rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum StrategySpec {
    /// The mean itself (McMahan et al., arXiv 1602.05629).
    #[default]
    Fedavg,
    /// Server momentum (Hsu et al., arXiv 1909.06335).
    Fedavgm {
        /// Length of a step; 1 is that of the mean.
        #[serde(default = "whole_step")]
        learning_rate: f64,
        /// Share of the last step that the next one keeps, below 1.
        #[serde(default = "forgetting")]
        momentum: f64,
    },
    /// Steps divided by the root of the sum of squares.
    Fedadagrad {
        /// Length of a step.
        #[serde(default = "small_step")]
        learning_rate: f64,
        /// Share of the first moment that is kept, below 1.
        #[serde(default)]
        beta1: f64,
        /// Adaptivity: what is added to the root, above 0.
        #[serde(default = "adaptivity")]
        tau: f64,
    },
    /// Steps divided by the root of a mean of squares.
    Fedadam {
        /// Length of a step.
        #[serde(default = "small_step")]
        learning_rate: f64,
        /// Share of the first moment that is kept, below 1.
        #[serde(default = "forgetting")]
        beta1: f64,
        /// Share of the second moment that is kept, below 1.
        #[serde(default = "slow_forgetting")]
        beta2: f64,
        /// Adaptivity: what is added to the root, above 0.
        #[serde(default = "adaptivity")]
        tau: f64,
    },
    /// As FedAdam, but the second moment changes by a bounded amount.
    Fedyogi {
        /// Length of a step.
        #[serde(default = "small_step")]
        learning_rate: f64,
        /// Share of the first moment that is kept, below 1.
        #[serde(default = "forgetting")]
        beta1: f64,
        /// Share of the second moment that is kept, below 1.
        #[serde(default = "slow_forgetting")]
        beta2: f64,
        /// Adaptivity: what is added to the root, above 0.
        #[serde(default = "adaptivity")]
        tau: f64,
    },
    /// SCAFFOLD (Karimireddy et al., arXiv 1910.06378, option II): clients correct their gradients by the difference of
    /// two control variates, the server's and their own, so that they do not drift apart. The mean is unweighted, as in
    /// the paper. A round sends a variate beside the adapter in both directions: twice the bytes. Clients keep theirs in
    /// the state folder of their worker. For `optimizer.kind = "sgd"` without momentum.
    Scaffold {
        /// Length of a step; 1 is that of the mean.
        #[serde(default = "whole_step")]
        learning_rate: f64,
        /// Clients that take part in the run, N in the paper. Default: `min_clients`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        population: Option<u32>,
    },
}

fn whole_step() -> f64 {
    1.0
}

fn small_step() -> f64 {
    0.01
}

fn forgetting() -> f64 {
    0.9
}

fn slow_forgetting() -> f64 {
    0.99
}

fn adaptivity() -> f64 {
    1e-3
}

impl StrategySpec {
    /// Whether it keeps anything from one round to the next.
    pub fn is_stateful(&self) -> bool {
        *self != Self::Fedavg
    }

    /// Checks every number.
    pub(crate) fn validate(&self) -> Result<(), InvalidSpec> {
        match *self {
            Self::Fedavg => Ok(()),
            Self::Scaffold { learning_rate, .. } => positive("strategy.learning_rate", learning_rate),
            Self::Fedavgm { learning_rate, momentum } => {
                positive("strategy.learning_rate", learning_rate)?;
                decay("strategy.momentum", momentum)
            }
            Self::Fedadagrad { learning_rate, beta1, tau } => {
                positive("strategy.learning_rate", learning_rate)?;
                decay("strategy.beta1", beta1)?;
                positive("strategy.tau", tau)
            }
            Self::Fedadam { learning_rate, beta1, beta2, tau }
            | Self::Fedyogi { learning_rate, beta1, beta2, tau } => {
                positive("strategy.learning_rate", learning_rate)?;
                decay("strategy.beta1", beta1)?;
                decay("strategy.beta2", beta2)?;
                positive("strategy.tau", tau)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_papers_and_bad_numbers_are_named() {
        let spec = |text: &str| serde_json::from_str::<StrategySpec>(text);
        assert_eq!(
            spec(r#"{"kind": "fedadam"}"#).unwrap(),
            StrategySpec::Fedadam { learning_rate: 0.01, beta1: 0.9, beta2: 0.99, tau: 1e-3 }
        );
        assert_eq!(
            spec(r#"{"kind": "fedavgm"}"#).unwrap(),
            StrategySpec::Fedavgm { learning_rate: 1.0, momentum: 0.9 }
        );
        assert!(spec(r#"{"kind": "fedavgm", "beta2": 0.5}"#).is_err());
        for (text, field) in [
            (r#"{"kind": "fedavgm", "momentum": 1.0}"#, "strategy.momentum"),
            (r#"{"kind": "fedadagrad", "learning_rate": 0.0}"#, "strategy.learning_rate"),
            (r#"{"kind": "fedadam", "beta2": 1.0}"#, "strategy.beta2"),
            (r#"{"kind": "fedyogi", "tau": 0.0}"#, "strategy.tau"),
            (r#"{"kind": "scaffold", "learning_rate": 0.0}"#, "strategy.learning_rate"),
        ] {
            let error = spec(text).unwrap().validate().unwrap_err().to_string();
            assert!(error.contains(field), "{text}: {error}");
        }
    }
}
