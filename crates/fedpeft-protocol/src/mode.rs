//! When a round takes which updates.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Round,
    validate::{InvalidSpec, at_least_one, not_negative},
};

/// How rounds follow one another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ModeSpec {
    /// Every client of a round trains the same global adapter, and the round ends before the next begins.
    #[default]
    Synchronous,
    /// Buffered asynchronous aggregation (FedBuff, Nguyen et al., arXiv 2106.06639): `cohort` clients train at
    /// any time, each from the adapter that was current when it began; a round closes whenever `buffer` updates
    /// have come. Who has answered is replaced at the next round, who has not goes on.
    Buffered {
        /// Updates that close a round (K in the paper).
        buffer: u32,
        /// Updates that began more rounds ago are refused.
        #[serde(default = "max_staleness")]
        max_staleness: Round,
        /// How an update's weight falls with its staleness.
        #[serde(default)]
        staleness: StalenessSpec,
    },
}

fn max_staleness() -> Round {
    20
}

/// The weight `s(t)` of an update that began `t` rounds ago, as a multiple of its examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum StalenessSpec {
    /// `s(t) = 1`.
    Constant,
    /// `s(t) = (1 + t)^-exponent` (Xie et al., arXiv 1903.03934; FedBuff uses an exponent of 1/2).
    Polynomial {
        /// The exponent.
        exponent: f64,
    },
}

impl Default for StalenessSpec {
    fn default() -> Self {
        Self::Polynomial { exponent: 0.5 }
    }
}

impl StalenessSpec {
    /// `s(t)`, in (0, 1].
    pub fn factor(&self, staleness: Round) -> f64 {
        match *self {
            Self::Constant => 1.0,
            Self::Polynomial { exponent } => (1.0 + f64::from(staleness)).powf(-exponent),
        }
    }
}

impl ModeSpec {
    /// Whether this is the default.
    pub fn is_synchronous(&self) -> bool {
        *self == Self::Synchronous
    }

    /// Checks every number, naming the field and the cure.
    pub fn validate(&self, cohort: u32) -> Result<(), InvalidSpec> {
        let Self::Buffered { buffer, staleness, .. } = self else { return Ok(()) };
        at_least_one("mode.buffer", *buffer)?;
        if *buffer > cohort {
            let message = format!("is {buffer}, more than the cohort of {cohort}: lower it");
            return Err(InvalidSpec::new("mode.buffer", message));
        }
        match staleness {
            StalenessSpec::Constant => Ok(()),
            StalenessSpec::Polynomial { exponent } => not_negative("mode.staleness.exponent", *exponent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staler_updates_weigh_less() {
        let fedbuff = StalenessSpec::default();
        assert_eq!((fedbuff.factor(0), fedbuff.factor(3)), (1.0, 0.5));
        assert_eq!(StalenessSpec::Constant.factor(9), 1.0);
    }

    #[test]
    fn a_buffer_is_part_of_the_cohort() {
        let buffered =
            |buffer| ModeSpec::Buffered { buffer, max_staleness: 5, staleness: StalenessSpec::default() };
        buffered(4).validate(4).unwrap();
        assert_eq!(buffered(5).validate(4).unwrap_err().field, "mode.buffer");
        assert_eq!(buffered(0).validate(4).unwrap_err().field, "mode.buffer");
    }
}
