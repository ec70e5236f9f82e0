//! Flags that take precedence over `[run.training]`.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use fedpeft_protocol::run::Warmup;
use toml::Value;

use super::{
    Document,
    overrides::{kind, set},
};

/// Overrides of `[run.training]`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Overrides of [run.training]")]
pub struct TrainingOverrides {
    /// Passes over a client's examples per round.
    #[arg(long, value_name = "E")]
    local_epochs: Option<u32>,
    /// Examples per optimizer step.
    #[arg(long, value_name = "B")]
    batch_size: Option<u32>,
    /// Micro-batches that a batch is computed in: less memory, the same steps.
    #[arg(long, value_name = "K")]
    accumulate: Option<u32>,
    /// Compute what the frozen backbone makes of examples once, for artifacts that train a head alone.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    cache_features: Option<bool>,
    /// Learning rate.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lr: Option<f64>,
    /// How the learning rate changes from step to step.
    #[arg(long, value_enum)]
    schedule: Option<Schedule>,
    /// Steps in which the learning rate rises from 0; below 1, their share of the schedule's steps.
    #[arg(long, value_name = "W", value_parser = warmup)]
    warmup: Option<Warmup>,
    /// Share of the learning rate at the end of a linear or cosine schedule.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lr_floor: Option<f64>,
    /// What the schedule extends over.
    #[arg(long, value_enum)]
    schedule_span: Option<Span>,
    /// Optimizer.
    #[arg(long, value_enum)]
    optimizer: Option<Optimizer>,
    /// Momentum of SGD.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    momentum: Option<f64>,
    /// Nesterov's form of momentum, for SGD.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    nesterov: Option<bool>,
    /// Weight decay.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weight_decay: Option<f64>,
    /// Most that the norm of the whole gradient may be: longer ones are scaled down.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    clip_norm: Option<f64>,
    /// DP-SGD: most that the norm of one example's gradient may be.
    #[arg(long, value_name = "C", allow_negative_numbers = true)]
    dp_sgd_clip: Option<f64>,
    /// DP-SGD: deviation of the noise on sums of clipped gradients, as a multiple of the clipping norm.
    #[arg(long, value_name = "Z", allow_negative_numbers = true)]
    dp_sgd_noise: Option<f64>,
    /// DP-SGD: how the examples of a step are drawn.
    #[arg(long, value_enum)]
    dp_sgd_sampling: Option<ExampleSampling>,
    /// DP-SGD: probability that the promise of epsilon does not hold.
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    dp_sgd_delta: Option<f64>,
    /// DP-SGD: most that a client's training may cost; it refuses what costs more.
    #[arg(long, value_name = "E", allow_negative_numbers = true)]
    dp_sgd_epsilon: Option<f64>,
    /// Strength of FedProx's proximal term; 0 is FedAvg.
    #[arg(long, value_name = "MU", allow_negative_numbers = true)]
    proximal_mu: Option<f64>,
    /// Tensors of the adapter that never leave a client, as a glob: 'head.*' is a personal head. May be repeated.
    #[arg(long, value_name = "GLOB")]
    local: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Optimizer {
    /// Stochastic gradient descent.
    Sgd,
    /// Adam with decoupled weight decay.
    Adamw,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum ExampleSampling {
    /// Each independently: batches vary in size.
    Poisson,
    /// A permutation cut into batches, without amplification of privacy.
    Shuffle,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Schedule {
    /// The learning rate stays, after warm-up.
    Constant,
    /// It falls linearly.
    Linear,
    /// It falls along half a cosine.
    Cosine,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Span {
    /// Every round starts anew.
    Round,
    /// All rounds of the run.
    Run,
}

/// The word for a value in files.
fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// A number of steps, or a share below 1, as transformers has it.
fn warmup(text: &str) -> Result<Warmup, String> {
    if let Ok(steps) = text.parse() {
        return Ok(Warmup::Steps(steps));
    }
    match text.parse() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(Warmup::Fraction(share)),
        _ => Err("give a number of steps, or a share such as 0.1".to_owned()),
    }
}

impl TrainingOverrides {
    /// Edits the document.
    pub fn apply(&self, document: &mut Document) -> Result<()> {
        set(document, "run.training.local_epochs", self.local_epochs)?;
        set(document, "run.training.batch_size", self.batch_size)?;
        set(document, "run.training.accumulate", self.accumulate)?;
        if let Some(cache) = self.cache_features {
            document.set("run.training.cache_features", cache)?;
        }
        for (key, value) in [
            ("learning_rate", self.lr),
            ("clip_norm", self.clip_norm),
            ("proximal_mu", self.proximal_mu),
            ("dp_sgd.clip_norm", self.dp_sgd_clip),
            ("dp_sgd.noise_multiplier", self.dp_sgd_noise),
            ("dp_sgd.delta", self.dp_sgd_delta),
            ("dp_sgd.epsilon", self.dp_sgd_epsilon),
        ] {
            if let Some(value) = value {
                document.set(&format!("run.training.{key}"), value)?;
            }
        }
        if !self.local.is_empty() {
            document.set("run.training.local", Value::try_from(&self.local)?)?;
        }
        if let Some(sampling) = self.dp_sgd_sampling {
            document.set("run.training.dp_sgd.sampling", word(sampling))?;
        }
        self.apply_schedule(document)?;
        self.apply_optimizer(document)
    }

    fn apply_schedule(&self, document: &mut Document) -> Result<()> {
        let warmup = match self.warmup {
            None => None,
            Some(warmup) => Some(Value::try_from(warmup)?),
        };
        let span = self.schedule_span.map(|span| Value::from(word(span)));
        let given = [("warmup", warmup), ("floor", self.lr_floor.map(Value::from)), ("span", span)];
        let chosen = tagged(document, "run.training.schedule", self.schedule.map(word), "constant", given)?;
        if self.lr_floor.is_some() && chosen == "constant" {
            bail!("--lr-floor belongs to --schedule linear or cosine, the schedule is constant");
        }
        Ok(())
    }

    fn apply_optimizer(&self, document: &mut Document) -> Result<()> {
        let given = [
            ("momentum", self.momentum.map(Value::from)),
            ("nesterov", self.nesterov.map(Value::from)),
            ("weight_decay", self.weight_decay.map(Value::from)),
        ];
        let chosen = tagged(document, "run.training.optimizer", self.optimizer.map(word), "adamw", given)?;
        for (flag, given) in [("momentum", self.momentum.is_some()), ("nesterov", self.nesterov.is_some())] {
            if given && chosen != "sgd" {
                bail!("--{flag} belongs to --optimizer sgd, the optimizer is {chosen}");
            }
        }
        Ok(())
    }
}

/// Edits the table at `path`, which is one kind of several, and returns which. Another kind than the file's
/// drops what the file says of its own.
pub(super) fn tagged<const N: usize>(
    document: &mut Document,
    path: &str,
    chosen: Option<String>,
    default: &str,
    given: [(&str, Option<Value>); N],
) -> Result<String> {
    let of_file = document.get(&format!("{path}.kind")).and_then(Value::as_str).unwrap_or(default).to_owned();
    let chosen = chosen.unwrap_or_else(|| of_file.clone());
    if chosen != of_file {
        document.set(path, kind(&chosen, []))?;
    }
    for (key, value) in given {
        if let Some(value) = value {
            document.set(&format!("{path}.kind"), chosen.as_str())?;
            document.set(&format!("{path}.{key}"), value)?;
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use fedpeft_protocol::run::{OptimizerSpec, ScheduleSpec, Span, TrainingSpec};

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        training: TrainingOverrides,
    }

    fn training(section: &str, flags: &[&str]) -> Result<TrainingSpec> {
        let text = format!(
            "[run]\nrounds = 1\ncohort = 1\n{section}\n[model]\nname = 'm'\n[data]\npartition = {{ kind = 'iid' }}"
        );
        let mut document = Document::parse("run.toml", &text)?;
        Flags::try_parse_from([&["flags"], flags].concat())?.training.apply(&mut document)?;
        Ok(document.config(None)?.run.training)
    }

    fn error(section: &str, flags: &[&str]) -> String {
        crate::output::one_line(&training(section, flags).unwrap_err())
    }

    const SGD: &str = "training = { optimizer = { kind = 'sgd', momentum = 0.5, weight_decay = 0.1 } }";

    #[test]
    fn flags_win_over_the_file() {
        let flags = ["--optimizer=sgd", "--momentum=0.9", "--nesterov", "--lr=0.5", "--accumulate=4"];
        let flags = [&flags[..], &["--cache-features"]].concat();
        let got = training("training = { learning_rate = 1.0 }", &flags).unwrap();
        assert!(got.cache_features);
        let sgd = OptimizerSpec::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0 };
        assert_eq!((got.optimizer, got.learning_rate, got.accumulate), (sgd, 0.5, 4));
        let got = training(SGD, &["--nesterov=true", "--clip-norm=1", "--proximal-mu=0.01"]).unwrap();
        let sgd = OptimizerSpec::Sgd { momentum: 0.5, nesterov: true, weight_decay: 0.1 };
        assert_eq!((got.optimizer, got.clip_norm, got.proximal_mu), (sgd, Some(1.0), 0.01));
        let got = training("training = { local = ['a'] }", &["--local=head.*", "--local=*norm*"]).unwrap();
        assert_eq!(got.local, ["head.*", "*norm*"]);
        let got = training(SGD, &["--optimizer=adamw"]).unwrap();
        assert_eq!(got.optimizer, OptimizerSpec::default());
    }

    #[test]
    fn private_training_is_asked_for_by_flags_or_by_the_file() {
        let flags =
            ["--dp-sgd-clip=1", "--dp-sgd-noise=1.1", "--dp-sgd-sampling=shuffle", "--dp-sgd-epsilon=8"];
        let got = training("", &flags).unwrap().dp_sgd.unwrap();
        assert_eq!((got.clip_norm, got.noise_multiplier, got.epsilon), (1.0, 1.1, Some(8.0)));
        assert_eq!((got.sampling, got.delta), (fedpeft_protocol::run::ExampleSampling::Shuffle, 1e-5));
        let file = "training = { dp_sgd = { clip_norm = 2.0, noise_multiplier = 1.0 } }";
        let got = training(file, &["--dp-sgd-delta=1e-6"]).unwrap().dp_sgd.unwrap();
        assert_eq!((got.clip_norm, got.delta), (2.0, 1e-6));
        assert!(error("", &["--dp-sgd-clip=1"]).contains("noise_multiplier"));
        assert!(error(file, &["--clip-norm=1"]).contains("cannot be used with dp_sgd"));
    }

    #[test]
    fn schedules_are_put_together() {
        let flags = ["--schedule=cosine", "--warmup=0.1", "--lr-floor=0.05", "--schedule-span=run"];
        let cosine = ScheduleSpec::Cosine { warmup: Warmup::Fraction(0.1), floor: 0.05, span: Span::Run };
        assert_eq!(training("", &flags).unwrap().schedule, cosine);
        let warm = ScheduleSpec::Constant { warmup: Warmup::Steps(10), span: Span::Round };
        assert_eq!(training("", &["--warmup=10"]).unwrap().schedule, warm);
        let file = "training = { schedule = { kind = 'linear', floor = 0.2, span = 'run' } }";
        let linear = ScheduleSpec::Linear { warmup: Warmup::Steps(3), floor: 0.2, span: Span::Run };
        assert_eq!(training(file, &["--warmup=3"]).unwrap().schedule, linear);
        let plain = ScheduleSpec::default();
        assert_eq!(training(file, &["--schedule=constant"]).unwrap().schedule, plain);
    }

    #[test]
    fn what_does_not_belong_together_is_named() {
        assert!(error("", &["--momentum=0.9"]).contains("--optimizer sgd"));
        assert!(error("", &["--nesterov"]).contains("--optimizer sgd"));
        assert!(error("", &["--optimizer=sgd", "--nesterov"]).contains("momentum"));
        assert!(error("", &["--lr-floor=0.1"]).contains("--schedule linear"));
        assert!(error("", &["--warmup=1.5"]).contains("0.1"));
        assert!(error("", &["--clip-norm=0"]).contains("clip_norm must be greater than 0"));
        assert!(error("", &["--accumulate=64"]).contains("batch_size of 32"));
        assert!(error("", &["--proximal-mu=-1"]).contains("proximal_mu"));
    }
}
