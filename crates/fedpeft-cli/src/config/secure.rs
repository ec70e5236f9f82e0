//! Flags that take precedence over `[secure_aggregation]`.

use anyhow::Result;
use clap::{Args, ValueEnum};
use toml::{Table, Value};

use super::Document;

/// Overrides of `[secure_aggregation]`.
#[derive(Debug, Default, Args)]
#[command(
    next_help_heading = "Overrides of [secure_aggregation]: the aggregator learns the sum of updates alone"
)]
pub struct SecureOverrides {
    /// Turn secure aggregation on; the options below do so too.
    #[arg(long)]
    secure_aggregation: bool,
    /// Who masks with whom.
    #[arg(long, value_enum)]
    mask_graph: Option<MaskGraph>,
    /// Share of the cohort that may drop out of a round.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    mask_dropout: Option<f64>,
    /// Share of the cohort that may collude with the aggregator.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    mask_corrupt: Option<f64>,
    /// Values of an update are rounded to multiples of their bound over 2^BITS.
    #[arg(long, value_name = "BITS")]
    mask_precision: Option<u8>,
    /// Values of an update are clamped to this distance from zero.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    mask_bound: Option<f64>,
    /// Clients scale updates of a larger L2 norm down to this.
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    mask_norm: Option<f64>,
    /// Seconds that each exchange after training may take.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    stage_deadline: Option<f64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MaskGraph {
    /// Everybody with everybody
    Complete,
    /// With as few others as serve: for large cohorts
    Sparse,
}

impl SecureOverrides {
    /// Edits the document.
    pub fn apply(&self, document: &mut Document) -> Result<()> {
        if self.secure_aggregation && document.get("run.secure_aggregation").is_none() {
            document.set("run.secure_aggregation", Table::new())?;
        }
        let graph = self.mask_graph.map(|graph| match graph {
            MaskGraph::Complete => "complete",
            MaskGraph::Sparse => "sparse",
        });
        let given = [
            ("graph", graph.map(Value::from)),
            ("dropout", self.mask_dropout.map(Value::from)),
            ("corrupt", self.mask_corrupt.map(Value::from)),
            ("precision", self.mask_precision.map(|bits| i64::from(bits).into())),
            ("bound", self.mask_bound.map(Value::from)),
            ("norm", self.mask_norm.map(Value::from)),
            ("stage_seconds", self.stage_deadline.map(Value::from)),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                document.set(&format!("run.secure_aggregation.{key}"), value)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use fedpeft_protocol::run::{MaskGraph, SecureSpec};

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        secure: SecureOverrides,
    }

    fn secure(section: &str, flags: &[&str]) -> Result<Option<SecureSpec>> {
        let text = format!(
            "[run]\nrounds = 1\ncohort = 4\n[model]\nname = 'm'\n[data]\npartition = {{ kind = 'iid' }}\n{section}"
        );
        let mut document = Document::parse("run.toml", &text)?;
        Flags::try_parse_from([&["flags"], flags].concat())?.secure.apply(&mut document)?;
        Ok(document.config(None)?.run.secure_aggregation)
    }

    #[test]
    fn flags_take_precedence_over_the_file() {
        assert_eq!(secure("", &[]).unwrap(), None);
        assert_eq!(secure("", &["--secure-aggregation"]).unwrap(), Some(SecureSpec::default()));
        let file = "[secure_aggregation]\ncorrupt = 0.3\nprecision = 12";
        let spec = secure(file, &["--mask-graph=sparse", "--mask-precision=20"]).unwrap().unwrap();
        assert_eq!((spec.graph, spec.corrupt, spec.precision), (MaskGraph::Sparse, 0.3, 20));
    }

    #[test]
    fn what_cannot_be_secure_is_named_with_its_cure() {
        let on = |rest: &str| {
            let error = secure(&format!("[secure_aggregation]\n{rest}"), &[]).unwrap_err();
            crate::output::one_line(&error)
        };
        for (rest, told) in [
            ("[aggregation]\nkind = 'median'", "leave out [run.aggregation]"),
            (
                "[privacy]\nepsilon = 5.0\ndelta = 1e-3\nclip_norm = 1.0\nsampling = 'poisson'",
                "set it to \"fixed\"",
            ),
            ("norm = 2.0\n[privacy]\nepsilon = 5.0\ndelta = 1e-3\nclip_norm = 1.0", "is privacy.clip_norm"),
            ("dropout = 0.9", "secure_aggregation.dropout must lie in [0, 0.5)"),
            ("bound = 0.0", "secure_aggregation.bound must be greater than 0"),
        ] {
            let error = on(rest);
            assert!(error.contains(told), "{rest}: {error}");
        }
    }
}
