//! The methods.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is trained beside the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Nothing: the head alone (linear probing).
    Head,
    /// Every bias of the backbone (BitFit, Ben Zaken et al., arXiv 2106.10199).
    Bias,
    /// Every parameter of the backbone.
    Full,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 3] = [Self::Head, Self::Bias, Self::Full];

    /// The method's name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Bias => "bias",
            Self::Full => "full",
        }
    }
}

/// A name that no method has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("method {0:?} is not known: use one of {names}", names = Method::ALL.map(Method::name).join(", "))]
pub struct UnknownMethod(String);

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(text: &str) -> Result<Self, UnknownMethod> {
        let known = Self::ALL.into_iter().find(|method| method.name() == text);
        known.ok_or_else(|| UnknownMethod(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_strangers_are_told_the_choice() {
        for method in Method::ALL {
            assert_eq!(method.name().parse(), Ok(method));
        }
        assert_eq!(
            "lorra".parse::<Method>().unwrap_err().to_string(),
            "method \"lorra\" is not known: use one of head, bias, full"
        );
    }
}
