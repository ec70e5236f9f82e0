//! Flags that take precedence over `[privacy]`.

use anyhow::Result;
use clap::{Args, ValueEnum};
use toml::{Table, Value};

use super::Document;

/// Overrides of `[privacy]`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Overrides of [privacy]: differential privacy of the clients")]
pub struct PrivacyOverrides {
    /// Epsilon that the run may spend.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    epsilon: Option<f64>,
    /// Delta of the promise, well below one over the number of clients.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    delta: Option<f64>,
    /// L2 norm that updates are clipped to; the first one, with --clip-quantile.
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    clip_update: Option<f64>,
    /// Noise over the clipping norm [default: the least that keeps all rounds within the budget].
    #[arg(long, value_name = "Z", allow_negative_numbers = true)]
    noise_multiplier: Option<f64>,
    /// Clients that cohorts are sampled from [default: those that must be present].
    #[arg(long, value_name = "N")]
    population: Option<u32>,
    /// How cohorts are sampled.
    #[arg(long, value_enum)]
    sampling: Option<Sampling>,
    /// Adapts the clipping norm so that this share of the updates is not clipped.
    #[arg(long, value_name = "Q", allow_negative_numbers = true)]
    clip_quantile: Option<f64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sampling {
    /// The cohort, without replacement; neighbours differ by one client replaced by another
    Fixed,
    /// Each client by itself, cohorts of any size; neighbours differ by one client more or fewer
    Poisson,
}

impl PrivacyOverrides {
    /// Edits the document.
    pub fn apply(&self, document: &mut Document) -> Result<()> {
        let sampling = self.sampling.map(|sampling| match sampling {
            Sampling::Fixed => "fixed",
            Sampling::Poisson => "poisson",
        });
        let given = [
            ("epsilon", self.epsilon.map(Value::from)),
            ("delta", self.delta.map(Value::from)),
            ("clip_norm", self.clip_update.map(Value::from)),
            ("noise_multiplier", self.noise_multiplier.map(Value::from)),
            ("population", self.population.map(|count| i64::from(count).into())),
            ("sampling", sampling.map(Value::from)),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                document.set(&format!("run.privacy.{key}"), value)?;
            }
        }
        if let Some(quantile) = self.clip_quantile {
            let known = document.get("run.privacy.adaptive").and_then(Value::as_table).cloned();
            let mut adaptive = known.unwrap_or_else(Table::new);
            adaptive.insert("quantile".to_owned(), quantile.into());
            document.set("run.privacy.adaptive", adaptive)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use fedpeft_protocol::run::{PrivacySpec, SamplingSpec};

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        privacy: PrivacyOverrides,
    }

    fn privacy(section: &str, flags: &[&str]) -> Result<Option<PrivacySpec>> {
        let text = format!(
            "[run]\nrounds = 1\ncohort = 4\n[model]\nname = 'm'\n[data]\npartition = {{ kind = 'iid' }}\n{section}"
        );
        let mut document = Document::parse("run.toml", &text)?;
        Flags::try_parse_from([&["flags"], flags].concat())?.privacy.apply(&mut document)?;
        Ok(document.config(None)?.run.privacy)
    }

    #[test]
    fn flags_take_precedence_over_the_file() {
        assert_eq!(privacy("", &[]).unwrap(), None);
        let file =
            "[privacy]\nepsilon = 5.0\ndelta = 1e-3\nclip_norm = 1.0\nadaptive = { learning_rate = 0.1 }";
        let flags = ["--epsilon=2", "--population=64", "--sampling=poisson", "--clip-quantile=0.7"];
        let spec = privacy(file, &flags).unwrap().unwrap();
        assert_eq!((spec.epsilon, spec.delta, spec.population), (2.0, 1e-3, Some(64)));
        assert_eq!(spec.sampling, SamplingSpec::Poisson);
        let adaptive = spec.adaptive.unwrap();
        assert_eq!((adaptive.quantile, adaptive.learning_rate), (0.7, 0.1));
    }

    #[test]
    fn what_is_missing_or_cannot_be_is_named() {
        let error =
            |section: &str, flags: &[&str]| crate::output::one_line(&privacy(section, flags).unwrap_err());
        let told = error("", &["--epsilon=5"]);
        assert!(told.contains("missing field `delta`"), "{told}");
        let told = error("", &["--epsilon=5", "--delta=1e-3", "--clip-update=1", "--population=2"]);
        assert!(told.contains("privacy.population is 2, fewer than the 4 clients of a round"), "{told}");
        let twice = "[privacy]\nepsilon = 1.0\n[run.privacy]\nepsilon = 1.0";
        let told = error(twice, &[]);
        assert!(told.contains("[privacy] and [run.privacy] are one section"), "{told}");
    }
}
