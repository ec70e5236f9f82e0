//! One stage of a pipeline, and how people write it.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::InvalidPipeline;

/// One stage, as written: `"int8"`, `"int8=channel"` or `{ kind = "int8", per = "channel" }`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(remote = "Self", tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Stage {
    /// Changes against the adapter that the receiver has.
    Delta {},
    /// The changes that are largest in magnitude.
    Topk {
        /// Their share of all values.
        fraction: f64,
        /// Whether the rest is kept for the next update.
        #[serde(default = "yes")]
        feedback: bool,
    },
    /// Changes drawn at random.
    Randk {
        /// Their share of all values.
        fraction: f64,
        /// Whether the rest is kept for the next update.
        #[serde(default = "yes")]
        feedback: bool,
    },
    /// Values as they are.
    Fp32 {},
    /// Values in half precision.
    Fp16 {},
    /// Values as the upper half of an `f32`.
    Bf16 {},
    /// Values in 8 bits.
    Int8(Quantizer),
    /// Values in 4 bits.
    Int4(Quantizer),
    /// Lossless compression.
    Zstd {
        /// 1 (fast) to 19 (small).
        #[serde(default = "default_level")]
        level: i32,
    },
}

fn yes() -> bool {
    true
}

/// Level at which zstd compresses unless told otherwise: its own default.
fn default_level() -> i32 {
    3
}

/// How values become integers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quantizer {
    /// Which values share a scale.
    pub per: Per,
    /// How they are rounded.
    pub rounding: Rounding,
}

/// Which values share a scale.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// Those of a tensor.
    #[default]
    Tensor,
    /// Those of one index of a tensor's first dimension; all of them in tensors of one dimension.
    Channel,
}

/// How values are rounded to integers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// Up or down at random, so that the expectation is the value (as in QSGD, Alistarh et al., arXiv 1610.02132).
    #[default]
    Stochastic,
    /// To the nearest integer, ties to even.
    Nearest,
}

impl Stage {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Delta {} => "delta",
            Self::Topk { .. } => "topk",
            Self::Randk { .. } => "randk",
            Self::Fp32 {} => "fp32",
            Self::Fp16 {} => "fp16",
            Self::Bf16 {} => "bf16",
            Self::Int8(_) => "int8",
            Self::Int4(_) => "int4",
            Self::Zstd { .. } => "zstd",
        }
    }

    /// Its place in the order; stages of one place exclude one another.
    pub(super) fn place(&self) -> u8 {
        match self {
            Self::Delta {} => 1,
            Self::Topk { .. } | Self::Randk { .. } => 2,
            Self::Fp32 {} | Self::Fp16 {} | Self::Bf16 {} | Self::Int8(_) | Self::Int4(_) => 3,
            Self::Zstd { .. } => 4,
        }
    }

    /// Checks its parameters.
    pub(super) fn check(&self) -> Result<(), InvalidPipeline> {
        match *self {
            Self::Topk { fraction, .. } | Self::Randk { fraction, .. } => {
                if fraction > 0.0 && fraction <= 1.0 {
                    return Ok(());
                }
                Err(InvalidPipeline::Fraction { stage: self.name(), fraction })
            }
            Self::Zstd { level } if !(1..=19).contains(&level) => Err(InvalidPipeline::Level(level)),
            _ => Ok(()),
        }
    }
}

const NOTHING: &str = "no parameters";
const SHARE: &str = "a share, as in topk=0.1, and with +forget no error feedback, as in topk=0.1+forget";
const QUANTIZER: &str = "tensor or channel and stochastic or nearest, as in int8=channel+nearest";
const LEVEL: &str = "a level, as in zstd=9";

/// `name`, or `name=parameters` with a plus sign between them.
impl FromStr for Stage {
    type Err = InvalidPipeline;

    fn from_str(text: &str) -> Result<Self, InvalidPipeline> {
        let (name, parameters) = text.split_once('=').map_or((text, None), |(n, p)| (n, Some(p)));
        let words: Vec<&str> = parameters.into_iter().flat_map(|p| p.split('+')).collect();
        let refuse = |stage, known| {
            let parameter = parameters.unwrap_or_default().chars().take(80).collect();
            InvalidPipeline::Parameter { stage, parameter, known }
        };
        let plain = |stage: Self| {
            if parameters.is_none() { Ok(stage) } else { Err(refuse(stage.name(), NOTHING)) }
        };
        let sparsifier = |stage| match words[..] {
            [share] => share.parse().map(|fraction| (fraction, true)).map_err(|_| refuse(stage, SHARE)),
            [share, "forget"] => {
                share.parse().map(|fraction| (fraction, false)).map_err(|_| refuse(stage, SHARE))
            }
            _ => Err(refuse(stage, SHARE)),
        };
        let quantizer = |stage| {
            words.iter().try_fold(Quantizer::default(), |so_far, word| match *word {
                "tensor" => Ok(Quantizer { per: Per::Tensor, ..so_far }),
                "channel" => Ok(Quantizer { per: Per::Channel, ..so_far }),
                "stochastic" => Ok(Quantizer { rounding: Rounding::Stochastic, ..so_far }),
                "nearest" => Ok(Quantizer { rounding: Rounding::Nearest, ..so_far }),
                _ => Err(refuse(stage, QUANTIZER)),
            })
        };
        let stage = match name {
            "delta" => plain(Self::Delta {})?,
            "topk" => sparsifier("topk").map(|(fraction, feedback)| Self::Topk { fraction, feedback })?,
            "randk" => sparsifier("randk").map(|(fraction, feedback)| Self::Randk { fraction, feedback })?,
            "fp32" => plain(Self::Fp32 {})?,
            "fp16" => plain(Self::Fp16 {})?,
            "bf16" => plain(Self::Bf16 {})?,
            "int8" => Self::Int8(quantizer("int8")?),
            "int4" => Self::Int4(quantizer("int4")?),
            "zstd" => match parameters {
                None => Self::Zstd { level: default_level() },
                Some(level) => Self::Zstd { level: level.parse().map_err(|_| refuse("zstd", LEVEL))? },
            },
            _ => return Err(InvalidPipeline::Unknown(name.chars().take(80).collect())),
        };
        stage.check().map(|()| stage)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match *self {
            Self::Topk { fraction, feedback } | Self::Randk { fraction, feedback } => {
                write!(formatter, "{name}={fraction}{}", if feedback { "" } else { "+forget" })
            }
            Self::Int8(quantizer) | Self::Int4(quantizer) => {
                let per = (quantizer.per == Per::Channel).then_some("channel");
                let rounding = (quantizer.rounding == Rounding::Nearest).then_some("nearest");
                let words: Vec<&str> = per.into_iter().chain(rounding).collect();
                let equals = if words.is_empty() { "" } else { "=" };
                write!(formatter, "{name}{equals}{}", words.join("+"))
            }
            Self::Zstd { level } if level != default_level() => write!(formatter, "{name}={level}"),
            _ => formatter.write_str(name),
        }
    }
}

impl Serialize for Stage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl<'de> Visitor<'de> for Written {
            type Value = Stage;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the name of a stage, or a table with its kind")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Stage, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Stage, A::Error> {
                Stage::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(Written)
    }
}

impl JsonSchema for Stage {
    fn schema_name() -> Cow<'static, str> {
        "Stage".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "One stage of a pipeline: its name with parameters, or a table",
            "anyOf": [
                {"type": "string", "pattern": "^(delta|topk|randk|fp32|fp16|bf16|int8|int4|zstd)(=.*)?$"},
                {"type": "object", "required": ["kind"], "properties": {"kind": {
                    "enum": ["delta", "topk", "randk", "fp32", "fp16", "bf16", "int8", "int4", "zstd"]
                }}},
            ],
        })
    }
}
