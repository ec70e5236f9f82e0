//! Secure aggregation in a run: what is asked for, and how far a round has come.
//!
//! The messages of the protocol itself are those of `fedpeft-secagg` and travel here as bytes.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Digest,
    round::{Personal, PhaseSeconds},
    validate::{InvalidSpec, check, positive},
};

/// Secure aggregation (Bonawitz et al., CCS 2017): the aggregator learns the sum of a round's updates and nothing else of
/// any of them. Updates are the differences to the global adapter, weighted by examples and rounded to a grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SecureSpec {
    /// Who masks with whom.
    pub graph: MaskGraph,
    /// Share of the cohort that may drop out of a round, rounded down; the rest is the default of `quorum`.
    pub dropout: f64,
    /// Share of the cohort that may collude with the aggregator without it learning more than the sum, rounded down.
    pub corrupt: f64,
    /// `bound` is 2^precision steps of the grid, for an update of weight 1: 1 to 32.
    pub precision: u8,
    /// Values of an update are clamped to this distance from zero.
    pub bound: f32,
    /// Updates whose L2 norm is larger are scaled down to it by their client. Default: none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<f32>,
    /// Seconds that each of the four exchanges after training may take; then the round goes on without who is late.
    pub stage_seconds: f64,
}

impl Default for SecureSpec {
    fn default() -> Self {
        Self {
            graph: MaskGraph::Complete,
            dropout: 0.25,
            corrupt: 0.1,
            precision: 16,
            bound: 1.0,
            norm: None,
            stage_seconds: 60.0,
        }
    }
}

/// Who masks with whom.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MaskGraph {
    /// Everybody with everybody.
    #[default]
    Complete,
    /// With as few neighbours as serve (Bell et al., CCS 2020): for large cohorts.
    Sparse,
}

impl SecureSpec {
    /// Checks every number, naming the field and the cure.
    pub(crate) fn validate(&self) -> Result<(), InvalidSpec> {
        for (field, share) in
            [("secure_aggregation.dropout", self.dropout), ("secure_aggregation.corrupt", self.corrupt)]
        {
            check(field, (0.0..0.5).contains(&share), || format!("must lie in [0, 0.5), not {share}"))?;
        }
        check("secure_aggregation.precision", (1..=32).contains(&self.precision), || {
            format!("must lie between 1 and 32, not {}", self.precision)
        })?;
        positive("secure_aggregation.stage_seconds", self.stage_seconds)?;
        for (field, bound) in
            [("secure_aggregation.bound", Some(self.bound)), ("secure_aggregation.norm", self.norm)]
        {
            if let Some(bound) = bound {
                check(field, bound.is_normal() && bound > 0.0, || {
                    format!("must be greater than 0, not {bound}")
                })?;
            }
        }
        Ok(())
    }

    /// Clients of a cohort that have to stay.
    pub fn quorum(&self, cohort: u32) -> u32 {
        cohort - (self.dropout * f64::from(cohort)) as u32
    }
}

/// The steps of a secure round. Each is a task of a client and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecureStage {
    /// Clients train, and make keys.
    Advertise,
    /// Clients share their secrets among one another.
    Share,
    /// Clients send their updates under masks.
    Mask,
    /// Clients sign who is in the sum.
    Confirm,
    /// Clients give the shares that take the masks off the sum.
    Unmask,
}

impl SecureStage {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Advertise, Self::Share, Self::Mask, Self::Confirm, Self::Unmask];

    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Advertise => "advertise",
            Self::Share => "share",
            Self::Mask => "mask",
            Self::Confirm => "confirm",
            Self::Unmask => "unmask",
        }
    }

    /// What the task of this stage is called.
    pub fn work(self) -> &'static str {
        match self {
            Self::Advertise => "train",
            Self::Share => "secure-share",
            Self::Mask => "secure-mask",
            Self::Confirm => "secure-confirm",
            Self::Unmask => "secure-unmask",
        }
    }
}

/// What a client says in the clear beside its keys: its update is masked, and its weight too.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SecureTrained {
    /// Optimizer steps taken.
    pub steps: u64,
    /// Mean training loss over the last local epoch; 0 where `epsilon` is told.
    pub loss: f64,
    /// Seconds spent training.
    pub seconds: f64,
    /// What the client's own model came to, where the task asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personal: Option<Personal>,
    /// What the client's examples have cost so far in this run, where training is private.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
}

/// The secure part of an open round. It is written before anybody is told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenSecure {
    /// By what the clients of the cohort are known to one another, in the cohort's order.
    pub identities: Vec<IdentityKey>,
    /// The stages that have ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<ClosedStage>,
}

/// The end of a stage. It is decided once: a client that is told of two leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClosedStage {
    /// Which.
    pub stage: SecureStage,
    /// Who answered in time, as hexadecimal text of a bitmap: client `i` of the cohort is bit `i % 8` of byte `i / 8`.
    #[serde(with = "hexadecimal")]
    #[schemars(with = "String")]
    pub members: Vec<u8>,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// What was secure about a committed round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SecureReport {
    /// Digest of all that was agreed on: run, round, cohort, identities, graph, thresholds, encoding.
    pub session: Digest,
    /// Clients that ended each stage, in order: `advertise`, `share`, `mask` (those in the sum), `confirm`, `unmask`.
    pub stages: Vec<u32>,
    /// Clients that had to stay.
    pub quorum: u32,
    /// Shares that recover a secret.
    pub threshold: u32,
    /// Other clients that each client masked with; all others in a complete graph.
    pub neighbours: u32,
    /// Bits of a masked value.
    pub bits: u8,
    /// Sum of the weights.
    pub weight: u64,
    /// Seconds that each stage took after the one before, likewise; that of `advertise` includes training.
    pub seconds: Vec<f64>,
}

impl SecureReport {
    /// Seconds of the exchanges that a round without secure aggregation does not have.
    pub fn extra_seconds(&self, seconds: &PhaseSeconds) -> f64 {
        self.seconds.iter().skip(1).sum::<f64>().min(seconds.total)
    }
}

/// An Ed25519 public key by which clients know one another, as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityKey([u8; 32]);

impl IdentityKey {
    /// Of these bytes, whether they are a key or not.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for IdentityKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for IdentityKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdentityKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = hexadecimal::deserialize(deserializer)?;
        <[u8; 32]>::try_from(bytes)
            .map(Self)
            .map_err(|bytes| serde::de::Error::custom(format!("a key has 32 bytes, not {}", bytes.len())))
    }
}

impl JsonSchema for IdentityKey {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IdentityKey".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
            "description": "Ed25519 public key by which clients know one another",
        })
    }
}

/// Bytes as hexadecimal text.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_bad_numbers_are_named() {
        SecureSpec::default().validate().unwrap();
        assert_eq!((SecureSpec::default().quorum(10), SecureSpec::default().quorum(3)), (8, 3));
        let none = SecureSpec::default();
        for (field, spec) in [
            ("secure_aggregation.dropout", SecureSpec { dropout: 0.5, ..none.clone() }),
            ("secure_aggregation.corrupt", SecureSpec { corrupt: -0.1, ..none.clone() }),
            ("secure_aggregation.precision", SecureSpec { precision: 0, ..none.clone() }),
            ("secure_aggregation.bound", SecureSpec { bound: f32::NAN, ..none.clone() }),
            ("secure_aggregation.norm", SecureSpec { norm: Some(0.0), ..none.clone() }),
            ("secure_aggregation.stage_seconds", SecureSpec { stage_seconds: 0.0, ..none.clone() }),
        ] {
            assert_eq!(spec.validate().unwrap_err().field, field);
        }
    }

    #[test]
    fn keys_are_hexadecimal() {
        let key = IdentityKey::new([0xab; 32]);
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(text, format!("\"{}\"", "ab".repeat(32)));
        assert_eq!(serde_json::from_str::<IdentityKey>(&text).unwrap(), key);
        assert!(serde_json::from_str::<IdentityKey>("\"abcd\"").is_err());
    }
}
