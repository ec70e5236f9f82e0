//! Flags that take precedence over `[run]` and `[stability]`: how rounds are run, and what goes wrong in them.

use anyhow::Result;
use clap::Args;
use fedpeft_protocol::pipeline::Pipeline;
use toml::Value;

use super::{
    Document,
    overrides::{kind, set},
};

/// Overrides of `[run]` that say when a round closes and what counts.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Overrides of [run]: rounds")]
pub struct RoundOverrides {
    /// Clients sampled beyond the cohort, as a share of it: the first updates close the round.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    over_selection: Option<f64>,
    /// Seconds after which a round closes as soon as it has its quorum.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    soft_deadline: Option<f64>,
    /// Asynchronous rounds (FedBuff) that close with K updates, while the cohort trains at any time.
    #[arg(long, value_name = "K")]
    buffer: Option<u32>,
    /// Refuse updates whose L2 distance from the adapter they began with is greater.
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    max_update_norm: Option<f64>,
    /// Keep the clients' adapters, so that `fedpeft run verify` can aggregate every round again.
    #[arg(long)]
    keep_updates: bool,
    /// How clients' adapters are encoded: stages with commas, as in delta,topk=0.1,int8,zstd (docs/codec.md).
    #[arg(long, value_name = "STAGES")]
    uplink: Option<Pipeline>,
    /// How the global adapter is encoded, as in fp16 or int8,zstd; what clients make of it is the global adapter.
    #[arg(long, value_name = "STAGES")]
    downlink: Option<Pipeline>,
}

/// Overrides of `[stability]`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Overrides of [stability]: simulated faults")]
pub struct StabilityOverrides {
    /// Probability that a client is available in a round.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    participation: Option<f64>,
    /// Probability that a sampled client never answers; the round then waits for a deadline.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    dropout: Option<f64>,
    /// Probability that a sampled client crashes in the middle of its training and goes on later.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    crash: Option<f64>,
    /// Mean of an exponential distribution of seconds by which answers are late.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    delay: Option<f64>,
    /// Seed of what goes wrong [default: that of the run].
    #[arg(long, value_name = "S")]
    stability_seed: Option<u32>,
}

impl RoundOverrides {
    /// Edits the document.
    pub fn apply(&self, document: &mut Document) -> Result<()> {
        set_number(document, "run.over_selection", self.over_selection)?;
        set_number(document, "run.soft_deadline_seconds", self.soft_deadline)?;
        set_number(document, "run.max_update_norm", self.max_update_norm)?;
        if let Some(buffer) = self.buffer {
            document.set("run.mode", kind("buffered", [("buffer", Value::from(i64::from(buffer)))]))?;
        }
        if self.keep_updates {
            document.set("run.keep_updates", true)?;
        }
        for (path, pipeline) in [("run.uplink", self.uplink), ("run.downlink", self.downlink)] {
            if let Some(pipeline) = pipeline {
                document.set(path, Value::try_from(pipeline)?)?;
            }
        }
        Ok(())
    }
}

impl StabilityOverrides {
    /// Edits the document.
    pub fn apply(&self, document: &mut Document) -> Result<()> {
        set_number(document, "stability.participation", self.participation)?;
        set_number(document, "stability.dropout", self.dropout)?;
        set_number(document, "stability.crash", self.crash)?;
        if let Some(mean) = self.delay {
            document.set("stability.delay", kind("exponential", [("mean", mean.into())]))?;
        }
        set(document, "stability.seed", self.stability_seed)
    }
}

fn set_number(document: &mut Document, path: &str, value: Option<f64>) -> Result<()> {
    value.map_or(Ok(()), |value| document.set(path, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpeft_protocol::run::{DelaySpec, ModeSpec};

    const FILE: &str = "[run]\nrounds = 1\ncohort = 4\n[model]\nname = 'm'\n[stability]\ncrash = 0.5";

    #[test]
    fn flags_and_the_section_become_part_of_the_run() {
        let mut file = Document::parse("run.toml", FILE).unwrap();
        let rounds = RoundOverrides { buffer: Some(2), keep_updates: true, ..Default::default() };
        rounds.apply(&mut file).unwrap();
        let stability = StabilityOverrides { dropout: Some(0.25), delay: Some(2.0), ..Default::default() };
        stability.apply(&mut file).unwrap();
        let run = file.config(None).unwrap().run;
        assert!(matches!(run.mode, ModeSpec::Buffered { buffer: 2, .. }) && run.keep_updates);
        let stability = run.stability.unwrap();
        assert_eq!((stability.dropout, stability.crash), (0.25, 0.5));
        assert_eq!(stability.delay, DelaySpec::Exponential { mean: 2.0 });
    }

    #[test]
    fn pipelines_are_lists_in_files_and_text_in_flags() {
        let text =
            FILE.replace("[run]", "[run]\nuplink = ['delta', { kind = 'topk', fraction = 0.1 }, 'zstd']");
        let run = Document::parse("run.toml", &text).unwrap().config(None).unwrap().run;
        assert_eq!(
            (run.uplink.to_string(), run.downlink.is_plain()),
            ("delta,topk=0.1,zstd".to_owned(), true)
        );
        let mut file = Document::parse("run.toml", &text).unwrap();
        let (uplink, downlink) = ("fp32".parse().ok(), "int8=channel,zstd".parse().ok());
        RoundOverrides { uplink, downlink, ..Default::default() }.apply(&mut file).unwrap();
        let run = file.config(None).unwrap().run;
        assert_eq!((run.uplink.is_plain(), run.downlink.to_string()), (true, "int8=channel,zstd".to_owned()));
        let wrong = FILE.replace("[run]", "[run]\ndownlink = ['zstd', 'int8']");
        let error =
            crate::output::one_line(&Document::parse("run.toml", &wrong).unwrap().config(None).unwrap_err());
        assert!(error.contains("int8 must come before zstd"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let refused = |rounds: RoundOverrides, stability: StabilityOverrides| {
            let mut file = Document::parse("run.toml", FILE).unwrap();
            rounds.apply(&mut file).unwrap();
            stability.apply(&mut file).unwrap();
            crate::output::one_line(&file.config(None).unwrap_err())
        };
        let error = refused(RoundOverrides { buffer: Some(9), ..Default::default() }, Default::default());
        assert!(error.contains("mode.buffer is 9, more than the cohort of 4"), "{error}");
        let error =
            refused(Default::default(), StabilityOverrides { dropout: Some(1.5), ..Default::default() });
        assert!(error.contains("stability.dropout must lie in [0, 1]"), "{error}");
        let twice = format!("{FILE}\n[run.stability]\ncrash = 0.1");
        let error = Document::parse("run.toml", &twice).unwrap().config(None).unwrap_err();
        assert!(error.to_string().contains("[stability] and [run.stability]"), "{error}");
    }
}
