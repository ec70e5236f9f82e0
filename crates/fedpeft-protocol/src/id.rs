//! Identifiers. Each is a NATS subject token and a file name on every platform, checked when it is built,
//! so that no identifier from a message can reach across subjects or paths.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};
use smol_str::SmolStr;

/// Longest identifier accepted, in bytes.
pub const MAX_ID_LEN: usize = 64;

/// The index of a round within a run, counted from 1. Round 0 is the state before any training.
pub type Round = u32;

/// A fencing token: it grows with every change of a run's owner, and everything an owner writes carries it.
pub type Epoch = u64;

/// An identifier that is not a token of `[A-Za-z0-9_-]`, 1 to 64 bytes long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: use 1 to {MAX_ID_LEN} of the characters A-Z a-z 0-9 _ -")]
pub struct InvalidId {
    /// What the identifier should have named: `run`, `client`, `model`.
    pub kind: &'static str,
    /// The refused text, cut to 80 characters.
    pub value: String,
}

fn check(kind: &'static str, text: &str) -> Result<(), InvalidId> {
    let valid_length = (1..=MAX_ID_LEN).contains(&text.len());
    if valid_length && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        Ok(())
    } else {
        Err(InvalidId { kind, value: text.chars().take(80).collect() })
    }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        ///
        /// Up to 23 bytes are in it, and copies of longer ones share their text: lists of ten thousand clients name the
        /// same ones.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(SmolStr);

        impl $name {
            /// Checks and wraps `text`.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidId> {
                let text = text.as_ref();
                check($kind, text)?;
                Ok(Self(text.into()))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("the name of a ", $kind))
                    }

                    fn visit_str<E: Error>(self, text: &str) -> Result<$name, E> {
                        $name::new(text).map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                schemars::json_schema!({
                    "type": "string",
                    "pattern": "^[A-Za-z0-9_-]{1,64}$",
                    "description": concat!("identifier of a ", $kind),
                })
            }
        }
    };
}

identifier!(
    /// A run: one fine-tuning of one backbone by one method over many clients.
    RunId,
    "run"
);
identifier!(
    /// A client: one party with its own data. A worker process hosts one or many.
    ClientId,
    "client"
);
identifier!(
    /// The name under which artifacts are published in the registry.
    ModelName,
    "model"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_accepted_and_everything_else_is_refused() {
        for good in ["a", "client-007", "A_b-9", &"x".repeat(64)] {
            assert_eq!(ClientId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a.b", "*", ">", "../etc", "a b", "é", "a\0", &"x".repeat(65)] {
            assert!(ClientId::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn decoding_checks_too() {
        assert!(serde_json::from_str::<RunId>("\"a.b\"").is_err());
        assert_eq!(serde_json::from_str::<RunId>("\"ab\"").unwrap(), RunId::new("ab").unwrap());
    }
}
