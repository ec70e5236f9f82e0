//! Flags that take precedence over `[aggregation]`.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use toml::Value;

use super::{Document, training::tagged};

/// Overrides of `[aggregation]`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Overrides of [aggregation]")]
pub struct AggregationOverrides {
    /// What the updates of a round come to.
    #[arg(long, value_enum)]
    aggregation: Option<Kind>,
    /// Most that an update's L2 norm may be, of clipped-mean.
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    update_norm: Option<f64>,
    /// Share of the updates left out at each end, of trimmed-mean.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    trim: Option<f64>,
    /// Clients that may lie, of krum.
    #[arg(long, value_name = "F")]
    byzantine: Option<u32>,
    /// Updates whose mean is taken, of krum: more than one is Multi-Krum.
    #[arg(long, value_name = "M")]
    krum_keep: Option<u32>,
    /// Iterations of the Weiszfeld algorithm, of geometric-median.
    #[arg(long, value_name = "N")]
    weiszfeld_iterations: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// The mean, weighted by examples
    Mean,
    /// The mean per local step, for clients with unequal numbers of steps
    Fednova,
    /// The mean of updates scaled down to --update-norm
    ClippedMean,
    /// The mean of low-rank updates rather than of their factors (lora)
    LoraProduct,
    /// The mean of low-rank updates, all of it: what the factors do not hold is kept and sent beside them (lora with
    /// --residual)
    LoraExact,
    /// The median of every value
    Median,
    /// The mean of every value without the --trim smallest and largest
    TrimmedMean,
    /// The updates closest to their neighbours
    Krum,
    /// The point with the least sum of distances to the updates
    GeometricMedian,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Fednova => "fednova",
            Self::ClippedMean => "clipped_mean",
            Self::LoraProduct => "lora_product",
            Self::LoraExact => "lora_exact",
            Self::Median => "median",
            Self::TrimmedMean => "trimmed_mean",
            Self::Krum => "krum",
            Self::GeometricMedian => "geometric_median",
        }
    }
}

impl AggregationOverrides {
    /// Edits the document.
    pub fn apply(&self, document: &mut Document) -> Result<()> {
        let whole = |value: Option<u32>| value.map(|value| Value::from(i64::from(value)));
        let flags = [
            ("norm", "update-norm", "clipped_mean", self.update_norm.map(Value::from)),
            ("trim", "trim", "trimmed_mean", self.trim.map(Value::from)),
            ("byzantine", "byzantine", "krum", whole(self.byzantine)),
            ("keep", "krum-keep", "krum", whole(self.krum_keep)),
            ("iterations", "weiszfeld-iterations", "geometric_median", whole(self.weiszfeld_iterations)),
        ];
        let given = flags.clone().map(|(key, _, _, value)| (key, value));
        let chosen = self.aggregation.map(|kind| kind.word().to_owned());
        let chosen = tagged(document, "run.aggregation", chosen, "mean", given)?;
        match flags.iter().find(|(_, _, of, value)| value.is_some() && *of != chosen) {
            Some((_, flag, of, _)) => {
                bail!("--{flag} belongs to aggregation {of}, not to {chosen}: see --aggregation in --help")
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use fedpeft_protocol::run::AggregationSpec;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        aggregation: AggregationOverrides,
    }

    fn aggregation(section: &str, flags: &[&str]) -> Result<AggregationSpec> {
        let text = format!(
            "[run]\nrounds = 1\ncohort = 7\n[model]\nname = 'm'\n[data]\npartition = {{ kind = 'iid' }}\n{section}"
        );
        let mut document = Document::parse("run.toml", &text)?;
        Flags::try_parse_from([&["flags"], flags].concat())?.aggregation.apply(&mut document)?;
        Ok(document.config(None)?.run.aggregation)
    }

    #[test]
    fn flags_take_precedence_over_the_file() {
        const KRUM: &str = "[aggregation]\nkind = 'krum'\nbyzantine = 2";
        assert_eq!(aggregation("", &[]).unwrap(), AggregationSpec::Mean);
        assert_eq!(aggregation(KRUM, &[]).unwrap(), AggregationSpec::Krum { byzantine: 2, keep: 1 });
        let krum = aggregation(KRUM, &["--byzantine=1", "--krum-keep=4"]).unwrap();
        assert_eq!(krum, AggregationSpec::Krum { byzantine: 1, keep: 4 });
        let trimmed = aggregation(KRUM, &["--aggregation=trimmed-mean", "--trim=0.2"]).unwrap();
        assert_eq!(trimmed, AggregationSpec::TrimmedMean { trim: 0.2 });
    }

    #[test]
    fn what_does_not_belong_together_is_named() {
        let error = |flags: &[&str]| crate::output::one_line(&aggregation("", flags).unwrap_err());
        assert!(error(&["--trim=0.1"]).contains("--trim belongs to aggregation trimmed_mean, not to mean"));
        let told = error(&["--aggregation=krum", "--byzantine=3"]);
        assert!(told.contains("aggregation needs 9 updates, a round has 7"), "{told}");
        let told = aggregation("[run.strategy]\nkind = 'fedadam'", &["--aggregation=lora-product"]);
        let told = crate::output::one_line(&told.unwrap_err());
        assert!(told.contains("lora_product must be fedavg"), "{told}");
        assert_eq!(aggregation("", &["--aggregation=lora-exact"]).unwrap(), AggregationSpec::LoraExact);
        let told = aggregation("[run.strategy]\nkind = 'fedadam'", &["--aggregation=lora-exact"]);
        let told = crate::output::one_line(&told.unwrap_err());
        assert!(told.contains("lora_exact must be fedavg"), "{told}");
        let told = error(&["--aggregation=fednova"]);
        assert!(told.contains("sgd"), "{told}");
    }
}
