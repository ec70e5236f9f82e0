//! What is learned: keys of `[model]`, and flags of the same names.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use fedpeft_artifacts::manifest::TaskSpec;
use fedpeft_data::LabelKind;
use fedpeft_peft::Pooling;
use serde::{Deserialize, Serialize};

/// A task and how tokens become what it is learned from. All that is not given follows from the data.
#[derive(Debug, Default, Clone, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Task")]
pub struct TaskArgs {
    /// What is learned [default: what the data is labelled with].
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskKind>,
    /// Probability that the loss spreads evenly over all classes (classification).
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_smoothing: Option<f32>,
    /// Weight of each class in the loss, separated by commas (classification).
    #[arg(long, value_name = "W,...", value_delimiter = ',', allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<Vec<f32>>,
    /// Weight of each label's positive examples in the loss, separated by commas (multi-label).
    #[arg(long, value_name = "W,...", value_delimiter = ',', allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pos_weight: Option<Vec<f32>>,
    /// How tokens become features [default: cls for images, mean for texts].
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<PoolingArg>,
}

/// Kinds of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// One class of several: cross-entropy.
    Classification,
    /// Any number of labels at once: binary cross-entropy of each.
    MultiLabel,
    /// Numbers: mean squared error.
    Regression,
    /// The next token of a text: cross-entropy.
    CausalLm,
}

/// How tokens become features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolingArg {
    /// The first token.
    Cls,
    /// The mean of all tokens but padding.
    Mean,
}

impl From<PoolingArg> for Pooling {
    fn from(pooling: PoolingArg) -> Self {
        match pooling {
            PoolingArg::Cls => Self::Cls,
            PoolingArg::Mean => Self::Mean,
        }
    }
}

impl From<LabelKind> for TaskKind {
    fn from(labels: LabelKind) -> Self {
        match labels {
            LabelKind::Classes(_) => Self::Classification,
            LabelKind::MultiLabel(_) => Self::MultiLabel,
            LabelKind::Regression(_) => Self::Regression,
            LabelKind::Tokens => Self::CausalLm,
        }
    }
}

impl TaskKind {
    /// The kind with so many classes, labels, outputs or tokens.
    fn of_width(self, width: u32) -> TaskSpec {
        match self {
            Self::Classification => TaskSpec::classification(width),
            Self::MultiLabel => TaskSpec::MultiLabel { labels: width, pos_weight: Vec::new() },
            Self::Regression => TaskSpec::Regression { outputs: width },
            Self::CausalLm => TaskSpec::CausalLm { vocabulary: width },
        }
    }
}

impl TaskArgs {
    /// These, and `file` where they say nothing. Another task than the file's drops what belongs to that.
    pub fn over(&self, file: Self) -> Self {
        let other = self.task.is_some_and(|task| file.task.is_some_and(|filed| filed != task));
        let file = if other { Self { pooling: file.pooling, ..Self::default() } } else { file };
        let flags = self.clone();
        Self {
            task: flags.task.or(file.task),
            label_smoothing: flags.label_smoothing.or(file.label_smoothing),
            class_weights: flags.class_weights.or(file.class_weights),
            pos_weight: flags.pos_weight.or(file.pos_weight),
            pooling: flags.pooling.or(file.pooling),
        }
    }

    /// The task of data labelled with `labels`, for a model of so many tokens where it reads text.
    pub fn of_data(&self, labels: LabelKind, vocabulary: Option<u32>) -> Result<TaskSpec> {
        let labelled = TaskKind::from(labels);
        if let Some(task) = self.task.filter(|task| *task != labelled) {
            let (task, labelled) = (task.of_width(1), labelled.of_width(1));
            bail!("the task is {}, but the data is labelled for {}", task.name(), labelled.name());
        }
        let width = match labels {
            LabelKind::Classes(width) | LabelKind::MultiLabel(width) | LabelKind::Regression(width) => width,
            LabelKind::Tokens => match vocabulary {
                Some(vocabulary) => vocabulary,
                None => bail!("causal-lm needs a model that reads text"),
            },
        };
        self.of_width(labelled, width)
    }

    /// The task, classification where none is named, with so many classes, labels, outputs or tokens.
    pub fn with_width(&self, width: u32) -> Result<TaskSpec> {
        self.of_width(self.task.unwrap_or(TaskKind::Classification), width)
    }

    fn of_width(&self, kind: TaskKind, width: u32) -> Result<TaskSpec> {
        let mut task = kind.of_width(width);
        let name = task.name();
        match (self.label_smoothing, &self.class_weights, &mut task) {
            (smoothing, weights, TaskSpec::Classification { label_smoothing, class_weights, .. }) => {
                *label_smoothing = smoothing.unwrap_or(0.0);
                *class_weights = weights.clone().unwrap_or_default();
            }
            (None, None, _) => {}
            _ => bail!("label smoothing and class weights belong to task classification, the task is {name}"),
        }
        match (&self.pos_weight, &mut task) {
            (Some(weights), TaskSpec::MultiLabel { pos_weight, .. }) => pos_weight.clone_from(weights),
            (Some(_), _) => bail!("pos_weight belongs to task multi-label, the task is {name}"),
            (None, _) => {}
        }
        Ok(task)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        task: TaskArgs,
    }

    fn flags(text: &str) -> TaskArgs {
        Program::try_parse_from(std::iter::once("p").chain(text.split_whitespace())).unwrap().task
    }

    #[test]
    fn the_data_says_what_is_learned() {
        let plain = TaskArgs::default();
        assert_eq!(plain.of_data(LabelKind::Classes(3), None).unwrap(), TaskSpec::classification(3));
        assert_eq!(
            plain.of_data(LabelKind::Regression(2), None).unwrap(),
            TaskSpec::Regression { outputs: 2 }
        );
        assert_eq!(
            plain.of_data(LabelKind::Tokens, Some(50)).unwrap(),
            TaskSpec::CausalLm { vocabulary: 50 }
        );
        assert!(plain.of_data(LabelKind::Tokens, None).is_err());
        let error = flags("--task causal-lm").of_data(LabelKind::Classes(3), None).unwrap_err().to_string();
        assert_eq!(error, "the task is causal-lm, but the data is labelled for classification");
    }

    #[test]
    fn weights_and_smoothing_belong_to_their_task() {
        let task = flags("--label-smoothing 0.1 --class-weights 1,2").with_width(2).unwrap();
        let expected =
            TaskSpec::Classification { classes: 2, label_smoothing: 0.1, class_weights: vec![1.0, 2.0] };
        assert_eq!(task, expected);
        let task = flags("--task multi-label --pos-weight 1,2").with_width(2).unwrap();
        assert_eq!(task, TaskSpec::MultiLabel { labels: 2, pos_weight: vec![1.0, 2.0] });
        for wrong in ["--task regression --label-smoothing 0.1", "--pos-weight 1"] {
            assert!(flags(wrong).with_width(1).unwrap_err().to_string().contains("belong"), "{wrong}");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: TaskArgs =
            toml::from_str("task = 'classification'\nlabel_smoothing = 0.2\npooling = 'mean'").unwrap();
        let merged = flags("--label-smoothing 0.1").over(file.clone());
        assert_eq!((merged.label_smoothing, merged.pooling), (Some(0.1), Some(PoolingArg::Mean)));
        let other = flags("--task regression").over(file);
        assert_eq!((other.label_smoothing, other.pooling), (None, Some(PoolingArg::Mean)));
    }
}
