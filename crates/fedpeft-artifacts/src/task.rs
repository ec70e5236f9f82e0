//! What a model learns: its labels and its loss.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inputs::{ElementType, InputSource, InputSpec, MAX_VOCABULARY};

/// Most classes, labels or outputs of a head.
const MAX_WIDTH: u32 = 1 << 20;

/// Label of a position that a language model is not scored on, as in PyTorch and `transformers`.
pub const IGNORED: i64 = -100;

/// What is learned. Losses are PyTorch's of the same name, means over what is scored in a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TaskSpec {
    /// One class of several: cross-entropy. Labels are `i64 [N]`, `0..classes`.
    Classification {
        /// Classes.
        classes: u32,
        /// Probability that is spread evenly over all classes, 0 to 1 (Szegedy et al., arXiv 1512.00567).
        #[serde(default, skip_serializing_if = "is_zero")]
        label_smoothing: f32,
        /// Weight of each class in the mean; empty if all weigh the same.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        class_weights: Vec<f32>,
    },
    /// Any number of labels at once: binary cross-entropy of each. Labels are `f32 [N, labels]`, 0 to 1.
    MultiLabel {
        /// Labels.
        labels: u32,
        /// Weight of each label's positive examples; empty if they weigh as much as negative ones.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pos_weight: Vec<f32>,
    },
    /// Numbers: mean squared error. Labels are `f32 [N, outputs]`.
    Regression {
        /// Numbers for each example.
        outputs: u32,
    },
    /// The next token: cross-entropy of each. Labels are `i64 [N, T]`, commonly the token ids; the logits at a
    /// position are scored on the label of the following one. Labels of -100 are not scored.
    CausalLm {
        /// Token ids are `0..vocabulary`.
        vocabulary: u32,
    },
}

fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

/// A task that cannot be learned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidTask {
    /// Too few or too many.
    #[error("{what} must be at least {least} and at most {most}, not {found}")]
    Width {
        /// Classes, labels, outputs or tokens.
        what: &'static str,
        /// Fewest.
        least: u32,
        /// Most.
        most: u32,
        /// Asked for.
        found: u32,
    },
    /// A share that is none.
    #[error("label_smoothing must be at least 0 and less than 1, not {0}")]
    Smoothing(f32),
    /// Weights that do not weigh.
    #[error("{what} must be {width} finite numbers greater than 0, one for each")]
    Weights {
        /// Which weights.
        what: &'static str,
        /// How many are needed.
        width: u32,
    },
    /// A language model of nothing.
    #[error("causal_lm needs an input made from token ids")]
    NoTokens,
}

impl TaskSpec {
    /// Plain classification.
    pub fn classification(classes: u32) -> Self {
        Self::Classification { classes, label_smoothing: 0.0, class_weights: Vec::new() }
    }

    /// Its name in files and on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Classification { .. } => "classification",
            Self::MultiLabel { .. } => "multi-label",
            Self::Regression { .. } => "regression",
            Self::CausalLm { .. } => "causal-lm",
        }
    }

    /// What its logits are, for people: `10 classes`.
    pub fn outputs(&self) -> String {
        let (what, width) = (self.width_name(), self.width());
        format!("{width} {what}")
    }

    fn width_name(&self) -> &'static str {
        match self {
            Self::Classification { .. } => "classes",
            Self::MultiLabel { .. } => "labels",
            Self::Regression { .. } => "outputs",
            Self::CausalLm { .. } => "tokens",
        }
    }

    /// Logits of one decision: classes, labels, outputs or vocabulary.
    pub fn width(&self) -> u32 {
        match *self {
            Self::Classification { classes, .. } => classes,
            Self::MultiLabel { labels, .. } => labels,
            Self::Regression { outputs } => outputs,
            Self::CausalLm { vocabulary } => vocabulary,
        }
    }

    /// Type of the labels.
    pub fn label_type(&self) -> ElementType {
        match self {
            Self::Classification { .. } | Self::CausalLm { .. } => ElementType::I64,
            Self::MultiLabel { .. } | Self::Regression { .. } => ElementType::F32,
        }
    }

    /// Shape of the labels of one example of a model with `inputs`.
    pub fn label_shape(&self, inputs: &[InputSpec]) -> Result<Vec<u64>, InvalidTask> {
        match self {
            Self::Classification { .. } => Ok(vec![]),
            Self::MultiLabel { labels: width, .. } | Self::Regression { outputs: width } => {
                Ok(vec![u64::from(*width)])
            }
            Self::CausalLm { .. } => {
                let ids = inputs.iter().find(|input| input.source == InputSource::TokenIds);
                ids.map(|ids| ids.shape.clone()).ok_or(InvalidTask::NoTokens)
            }
        }
    }

    /// Whether it can be learned.
    pub(crate) fn check(&self) -> Result<(), InvalidTask> {
        let (least, most) = match self {
            Self::Classification { .. } => (2, MAX_WIDTH),
            Self::MultiLabel { .. } | Self::Regression { .. } => (1, MAX_WIDTH),
            Self::CausalLm { .. } => (2, MAX_VOCABULARY),
        };
        let width = self.width();
        if !(least..=most).contains(&width) {
            return Err(InvalidTask::Width { what: self.width_name(), least, most, found: width });
        }
        let weigh = |weights: &[f32]| {
            weights.is_empty()
                || weights.len() as u64 == u64::from(width)
                    && weights.iter().all(|weight| weight.is_finite() && *weight > 0.0)
        };
        match self {
            Self::Classification { label_smoothing, .. } if !(0.0..1.0).contains(label_smoothing) => {
                Err(InvalidTask::Smoothing(*label_smoothing))
            }
            Self::Classification { class_weights, .. } if !weigh(class_weights) => {
                Err(InvalidTask::Weights { what: "class_weights", width })
            }
            Self::MultiLabel { pos_weight, .. } if !weigh(pos_weight) => {
                Err(InvalidTask::Weights { what: "pos_weight", width })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_that_cannot_be_learned_are_refused() {
        let smoothed = |label_smoothing, class_weights: &[f32]| TaskSpec::Classification {
            classes: 2,
            label_smoothing,
            class_weights: class_weights.into(),
        };
        smoothed(0.1, &[1.0, 2.0]).check().unwrap();
        TaskSpec::Regression { outputs: 1 }.check().unwrap();
        let refused = |task: TaskSpec, expected: &str| {
            let error = task.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(TaskSpec::classification(1), "classes must be at least 2");
        refused(TaskSpec::classification(u32::MAX), "not 4294967295");
        refused(smoothed(1.0, &[]), "label_smoothing");
        refused(smoothed(f32::NAN, &[]), "label_smoothing");
        refused(smoothed(0.0, &[1.0]), "class_weights must be 2");
        refused(smoothed(0.0, &[1.0, 0.0]), "greater than 0");
        refused(TaskSpec::MultiLabel { labels: 1, pos_weight: vec![f32::INFINITY] }, "pos_weight");
        refused(TaskSpec::CausalLm { vocabulary: 1 }, "tokens must be at least 2");
    }

    #[test]
    fn labels_have_the_shape_of_the_task() {
        let ids = InputSpec {
            name: "ids".into(),
            dtype: ElementType::I64,
            shape: vec![8],
            source: InputSource::TokenIds,
        };
        let shape = |task: TaskSpec| task.label_shape(std::slice::from_ref(&ids));
        assert_eq!(shape(TaskSpec::classification(3)), Ok(vec![]));
        assert_eq!(shape(TaskSpec::Regression { outputs: 2 }), Ok(vec![2]));
        assert_eq!(shape(TaskSpec::CausalLm { vocabulary: 9 }), Ok(vec![8]));
        assert_eq!(TaskSpec::CausalLm { vocabulary: 9 }.label_shape(&[]), Err(InvalidTask::NoTokens));
    }

    #[test]
    fn plain_tasks_are_short_in_json() {
        let json = serde_json::to_string(&TaskSpec::classification(3)).unwrap();
        assert_eq!(json, r#"{"kind":"classification","classes":3}"#);
        assert_eq!(serde_json::from_str::<TaskSpec>(&json).unwrap(), TaskSpec::classification(3));
    }
}
