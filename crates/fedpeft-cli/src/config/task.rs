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
    fn name(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::MultiLabel => "multi-label",
            Self::Regression => "regression",
            Self::CausalLm => "causal-lm",
        }
    }
}

impl TaskArgs {
    /// The task of data labelled with `labels`.
    pub fn of_data(self, labels: LabelKind) -> Result<Task> {
        let labelled = TaskKind::from(labels);
        if let Some(task) = self.task.filter(|task| *task != labelled) {
            bail!("the task is {}, but the data is labelled for {}", task.name(), labelled.name());
        }
        let width = match labels {
            LabelKind::Classes(width) | LabelKind::MultiLabel(width) | LabelKind::Regression(width) => {
                Some(width)
            }
            LabelKind::Tokens => None,
        };
        Task::new(self, labelled, width)
    }
}

/// What is learned, and how wide: classes, labels or outputs. A language model is as wide as its vocabulary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Task {
    #[serde(flatten)]
    args: TaskArgs,
    #[serde(skip)]
    kind: TaskKind,
    width: Option<u32>,
}

impl Task {
    /// One of two classes: for whoever looks at a backbone and not at what it learns.
    pub fn any() -> Result<Self> {
        Self::new(TaskArgs::default(), TaskKind::Classification, Some(2))
    }

    /// A task whose constants are those of its kind.
    fn new(mut args: TaskArgs, kind: TaskKind, width: Option<u32>) -> Result<Self> {
        let belongs = [
            ("label_smoothing", args.label_smoothing.is_some(), TaskKind::Classification),
            ("class_weights", args.class_weights.is_some(), TaskKind::Classification),
            ("pos_weight", args.pos_weight.is_some(), TaskKind::MultiLabel),
        ];
        if let Some((key, _, of)) = belongs.into_iter().find(|(_, given, of)| *given && *of != kind) {
            bail!("{key} belongs to task {}, the task is {}", of.name(), kind.name());
        }
        if kind == TaskKind::CausalLm && args.pooling.is_some() {
            bail!("pooling makes one vector of a text, causal-lm learns from every token");
        }
        args.task = Some(kind);
        if kind == TaskKind::Classification {
            args.label_smoothing.get_or_insert(0.0);
        }
        Ok(Self { args, kind, width })
    }

    /// The task of a model that knows so many tokens; none of a model of images.
    pub fn spec(&self, vocabulary: Option<u32>) -> Result<TaskSpec> {
        let width = match (self.kind, self.width) {
            (TaskKind::CausalLm, _) => vocabulary,
            (_, width) => width,
        };
        let Some(width) = width else { bail!("task {} needs a model of texts", self.kind.name()) };
        let args = self.args.clone();
        Ok(match self.kind {
            TaskKind::Classification => TaskSpec::Classification {
                classes: width,
                label_smoothing: args.label_smoothing.unwrap_or(0.0),
                class_weights: args.class_weights.unwrap_or_default(),
            },
            TaskKind::MultiLabel => {
                TaskSpec::MultiLabel { labels: width, pos_weight: args.pos_weight.unwrap_or_default() }
            }
            TaskKind::Regression => TaskSpec::Regression { outputs: width },
            TaskKind::CausalLm => TaskSpec::CausalLm { vocabulary: width },
        })
    }

    /// How tokens become features, where that is said.
    pub fn pooling(&self) -> Option<Pooling> {
        self.args.pooling.map(Pooling::from)
    }

    /// One word for it.
    #[cfg(test)]
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }
}

/// How wide a head is: one of these, or none for a language model.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
pub struct WidthArgs {
    /// Classes, one of which an example has.
    #[arg(long, value_name = "C")]
    classes: Option<u32>,
    /// Labels, any of which an example has.
    #[arg(long, value_name = "K")]
    labels: Option<u32>,
    /// Real numbers to predict.
    #[arg(long, value_name = "K")]
    outputs: Option<u32>,
}

impl WidthArgs {
    /// The task of `args` of this width.
    pub fn task(&self, args: TaskArgs) -> Result<Task> {
        let given = [
            (TaskKind::Classification, "--classes", self.classes),
            (TaskKind::MultiLabel, "--labels", self.labels),
            (TaskKind::Regression, "--outputs", self.outputs),
        ];
        let named = args.task;
        if let Some((kind, flag, width)) = given.into_iter().find(|(_, _, width)| width.is_some()) {
            return match named.filter(|task| *task != kind) {
                Some(task) => bail!("{flag} is for task {}, the task is {}", kind.name(), task.name()),
                None => Task::new(args, kind, width),
            };
        }
        match (named, given.into_iter().find(|(kind, ..)| Some(*kind) == named)) {
            (Some(TaskKind::CausalLm), _) => Task::new(args, TaskKind::CausalLm, None),
            (Some(task), Some((_, flag, _))) => bail!("task {} needs {flag}", task.name()),
            _ => bail!("say what is learned: --classes, --labels or --outputs, or --task causal-lm"),
        }
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
        #[command(flatten)]
        width: WidthArgs,
    }

    fn flags(text: &str) -> TaskArgs {
        Program::try_parse_from(std::iter::once("p").chain(text.split_whitespace())).unwrap().task
    }

    #[test]
    fn the_data_says_what_is_learned() {
        let learned = |labels, vocabulary| TaskArgs::default().of_data(labels)?.spec(vocabulary);
        assert_eq!(learned(LabelKind::Classes(3), None).unwrap(), TaskSpec::classification(3));
        assert_eq!(learned(LabelKind::Regression(2), None).unwrap(), TaskSpec::Regression { outputs: 2 });
        let tokens = learned(LabelKind::Tokens, Some(50)).unwrap();
        assert_eq!(tokens, TaskSpec::CausalLm { vocabulary: 50 });
        let error = learned(LabelKind::Tokens, None).unwrap_err().to_string();
        assert_eq!(error, "task causal-lm needs a model of texts");
        let error = flags("--task causal-lm").of_data(LabelKind::Classes(3)).unwrap_err().to_string();
        assert_eq!(error, "the task is causal-lm, but the data is labelled for classification");
    }

    #[test]
    fn widths_say_what_is_learned_where_there_is_no_data() {
        let task = |text: &str| {
            let words = std::iter::once("p").chain(text.split_whitespace());
            let program = Program::try_parse_from(words).unwrap();
            program.width.task(program.task).and_then(|task| task.spec(Some(50)))
        };
        let smoothed = task("--classes 2 --label-smoothing 0.1 --class-weights 1,2").unwrap();
        let expected =
            TaskSpec::Classification { classes: 2, label_smoothing: 0.1, class_weights: vec![1.0, 2.0] };
        assert_eq!(smoothed, expected);
        let weighted = TaskSpec::MultiLabel { labels: 2, pos_weight: vec![1.0, 2.0] };
        assert_eq!(task("--task multi-label --labels 2 --pos-weight 1,2").unwrap(), weighted);
        assert_eq!(task("--outputs 1").unwrap(), TaskSpec::Regression { outputs: 1 });
        assert_eq!(task("--task causal-lm").unwrap(), TaskSpec::CausalLm { vocabulary: 50 });
        for (wrong, expected) in [
            ("", "say what is learned"),
            ("--task regression", "task regression needs --outputs"),
            ("--task regression --classes 3", "--classes is for task classification, the task is regression"),
            ("--outputs 1 --label-smoothing 0.1", "label_smoothing belongs to task classification"),
            ("--classes 2 --pos-weight 1", "pos_weight belongs to task multi-label"),
            ("--task causal-lm --pooling mean", "pooling"),
        ] {
            let error = task(wrong).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn keys_are_written_as_flags_are() {
        let given = flags("--task multi-label --pos-weight 1,2 --pooling mean");
        let text = toml::to_string(&given).unwrap();
        assert_eq!(text, "task = \"multi-label\"\npos_weight = [1.0, 2.0]\npooling = \"mean\"\n");
        assert_eq!(toml::from_str::<TaskArgs>(&text).unwrap(), given);
    }
}
