//! How adapters are compressed on their way: `uplink` and `downlink` of a run.
//!
//! A pipeline is a list of stages in a fixed order, each at most once:
//!
//! | place | stages | effect |
//! | --- | --- | --- |
//! | 1 | `delta` | the change against the adapter that the receiver has |
//! | 2 | `topk`, `randk` | only a part of the changes; needs `delta` |
//! | 3 | `fp32`, `fp16`, `bf16`, `int8`, `int4` | how a value is stored; `fp32` where none is named |
//! | 4 | `zstd` | lossless compression of what is left |
//!
//! In files a stage is its name, or a table where it has parameters; flags write it `name=parameters`:
//!
//! ```toml
//! uplink = ["delta", { kind = "topk", fraction = 0.1 }, { kind = "int8", per = "channel" }, "zstd"]
//! ```
//!
//! The same as a flag: `--uplink delta,topk=0.1,int8=channel,zstd`. What a stage does to the bytes is in
//! `fedpeft-codec`.

mod stage;

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use stage::{Per, Quantizer, Rounding, Stage};

/// A list of stages that makes sense. The empty one sends plain `f32` values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<Stage>", into = "Vec<Stage>")]
#[schemars(with = "Vec<Stage>")]
pub struct Pipeline {
    delta: bool,
    sparsifier: Option<Sparsifier>,
    values: Values,
    zstd: Option<i32>,
}

/// Which of the changes are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sparsifier {
    /// How they are chosen.
    pub choice: Choice,
    /// Their share of all values, in (0, 1].
    pub fraction: f64,
    /// Whether the client keeps what it did not send and adds it to its next update (error feedback,
    /// Karimireddy et al., arXiv 1901.09847).
    pub feedback: bool,
}

/// How the changes that are sent are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The largest in magnitude.
    Largest,
    /// At random from a seed that is sent instead of the indices. Without feedback what is sent is scaled by the
    /// inverse of its share, so that the expectation is right (Konečný et al., arXiv 1610.05492).
    Random,
}

/// How a value is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Values {
    /// As it is.
    #[default]
    Fp32,
    /// IEEE 754 binary16.
    Fp16,
    /// The upper half of an `f32`.
    Bf16,
    /// An integer of magnitude up to 127, times a scale.
    Int8(Quantizer),
    /// An integer of magnitude up to 7, times a scale.
    Int4(Quantizer),
}

/// Stages that make no pipeline.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidPipeline {
    /// There is no such stage.
    #[error(
        "{0:?} is no stage of a pipeline: known are delta, topk, randk, fp32, fp16, bf16, int8, int4 and zstd"
    )]
    Unknown(String),
    /// A parameter that the stage does not take.
    #[error("stage {stage} does not take {parameter:?}: it takes {known}")]
    Parameter {
        /// The stage.
        stage: &'static str,
        /// What it was given.
        parameter: String,
        /// What it takes.
        known: &'static str,
    },
    /// A share that is none.
    #[error("the fraction of stage {stage} must be greater than 0 and at most 1, not {fraction}")]
    Fraction {
        /// The stage.
        stage: &'static str,
        /// The share.
        fraction: f64,
    },
    /// A level that zstd does not have, or that needs too much memory.
    #[error("the level of stage zstd must be 1 to 19, not {0}")]
    Level(i32),
    /// Two stages for one place.
    #[error("stages {first} and {second} do the same thing in two ways: keep one of them")]
    Twice {
        /// The first.
        first: &'static str,
        /// The second.
        second: &'static str,
    },
    /// The wrong way round.
    #[error(
        "stage {late} must come before {early}: first delta, then topk or randk, then fp32, fp16, bf16, int8 \
         or int4, then zstd"
    )]
    Order {
        /// The stage that came first.
        early: &'static str,
        /// The stage that should have.
        late: &'static str,
    },
    /// A part of the values where the whole is needed.
    #[error("stage {0} drops values, which only changes can do without: put delta first")]
    NeedsDelta(&'static str),
}

impl Pipeline {
    /// Puts stages together.
    pub fn new(stages: &[Stage]) -> Result<Self, InvalidPipeline> {
        let mut pipeline = Self::default();
        for (at, stage) in stages.iter().enumerate() {
            stage.check()?;
            if let Some(before) = at.checked_sub(1).map(|before| &stages[before]) {
                let (early, late) = (before.name(), stage.name());
                match before.place().cmp(&stage.place()) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => {
                        return Err(InvalidPipeline::Twice { first: early, second: late });
                    }
                    std::cmp::Ordering::Greater => return Err(InvalidPipeline::Order { early, late }),
                }
            }
            match *stage {
                Stage::Delta {} => pipeline.delta = true,
                Stage::Topk { .. } | Stage::Randk { .. } if !pipeline.delta => {
                    return Err(InvalidPipeline::NeedsDelta(stage.name()));
                }
                Stage::Topk { fraction, feedback } => {
                    pipeline.sparsifier = Some(Sparsifier { choice: Choice::Largest, fraction, feedback });
                }
                Stage::Randk { fraction, feedback } => {
                    pipeline.sparsifier = Some(Sparsifier { choice: Choice::Random, fraction, feedback });
                }
                Stage::Fp32 {} => {}
                Stage::Fp16 {} => pipeline.values = Values::Fp16,
                Stage::Bf16 {} => pipeline.values = Values::Bf16,
                Stage::Int8(quantizer) => pipeline.values = Values::Int8(quantizer),
                Stage::Int4(quantizer) => pipeline.values = Values::Int4(quantizer),
                Stage::Zstd { level } => pipeline.zstd = Some(level),
            }
        }
        Ok(pipeline)
    }

    /// Whether values are sent as they are, without a header.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the receiver gets every bit of every value.
    pub fn is_lossless(&self) -> bool {
        self.sparsifier.is_none() && self.values == Values::Fp32
    }

    /// Whether changes are sent.
    pub fn delta(&self) -> bool {
        self.delta
    }

    /// Which of the changes are sent; all, where none.
    pub fn sparsifier(&self) -> Option<Sparsifier> {
        self.sparsifier
    }

    /// How a value is stored.
    pub fn values(&self) -> Values {
        self.values
    }

    /// Level of compression with zstd, if there is one.
    pub fn zstd(&self) -> Option<i32> {
        self.zstd
    }

    /// Whether the sender keeps what it did not send and adds it the next time.
    pub fn feedback(&self) -> bool {
        self.sparsifier.is_some_and(|sparsifier| sparsifier.feedback)
    }

    /// The stages, in order.
    pub fn stages(&self) -> Vec<Stage> {
        let sparsifier = self.sparsifier.map(|Sparsifier { choice, fraction, feedback }| match choice {
            Choice::Largest => Stage::Topk { fraction, feedback },
            Choice::Random => Stage::Randk { fraction, feedback },
        });
        let values = match self.values {
            Values::Fp32 => None,
            Values::Fp16 => Some(Stage::Fp16 {}),
            Values::Bf16 => Some(Stage::Bf16 {}),
            Values::Int8(quantizer) => Some(Stage::Int8(quantizer)),
            Values::Int4(quantizer) => Some(Stage::Int4(quantizer)),
        };
        let delta = self.delta.then_some(Stage::Delta {});
        let zstd = self.zstd.map(|level| Stage::Zstd { level });
        [delta, sparsifier, values, zstd].into_iter().flatten().collect()
    }
}

impl TryFrom<Vec<Stage>> for Pipeline {
    type Error = InvalidPipeline;

    fn try_from(stages: Vec<Stage>) -> Result<Self, InvalidPipeline> {
        Self::new(&stages)
    }
}

impl From<Pipeline> for Vec<Stage> {
    fn from(pipeline: Pipeline) -> Self {
        pipeline.stages()
    }
}

/// Stages with commas between them; `fp32` is the empty pipeline.
impl FromStr for Pipeline {
    type Err = InvalidPipeline;

    fn from_str(text: &str) -> Result<Self, InvalidPipeline> {
        let stages = text.split(',').map(|stage| stage.trim().parse()).collect::<Result<Vec<_>, _>>()?;
        Self::new(&stages)
    }
}

impl fmt::Display for Pipeline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_plain() {
            return formatter.write_str("fp32");
        }
        let stages: Vec<String> = self.stages().iter().map(Stage::to_string).collect();
        formatter.write_str(&stages.join(","))
    }
}

#[cfg(test)]
mod tests;
