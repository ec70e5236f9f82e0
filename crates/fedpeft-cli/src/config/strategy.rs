//! Flags that take precedence over `[run.strategy]`.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use toml::Value;

use super::{Document, training::tagged};

/// Overrides of `[run.strategy]`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Overrides of [run.strategy]")]
pub struct StrategyOverrides {
    /// How updates become the next global adapter.
    #[arg(long, value_enum)]
    strategy: Option<Kind>,
    /// Length of the server's step, of all but fedavg.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    server_lr: Option<f64>,
    /// Share of the server's last step that the next one keeps, of fedavgm.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    server_momentum: Option<f64>,
    /// Share of the first moment that the server keeps, of fedadagrad, fedadam and fedyogi.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    server_beta1: Option<f64>,
    /// Share of the second moment that the server keeps, of fedadam and fedyogi.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    server_beta2: Option<f64>,
    /// Adaptivity: added to the root of the second moment, of fedadagrad, fedadam and fedyogi.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    server_tau: Option<f64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// The mean of the clients' adapters, weighted by their examples
    Fedavg,
    /// Server momentum
    Fedavgm,
    /// Steps divided by the root of the sum of squares
    Fedadagrad,
    /// Steps divided by the root of a mean of squares
    Fedadam,
    /// As fedadam, but the second moment changes by a bounded amount
    Fedyogi,
    /// Clients correct their gradients by control variates; needs --optimizer sgd
    Scaffold,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Fedavg => "fedavg",
            Self::Fedavgm => "fedavgm",
            Self::Fedadagrad => "fedadagrad",
            Self::Fedadam => "fedadam",
            Self::Fedyogi => "fedyogi",
            Self::Scaffold => "scaffold",
        }
    }
}

impl StrategyOverrides {
    /// Edits the document.
    pub fn apply(&self, document: &mut Document) -> Result<()> {
        let flags = [
            ("learning_rate", "server-lr", self.server_lr),
            ("momentum", "server-momentum", self.server_momentum),
            ("beta1", "server-beta1", self.server_beta1),
            ("beta2", "server-beta2", self.server_beta2),
            ("tau", "server-tau", self.server_tau),
        ];
        let given = flags.map(|(key, _, value)| (key, value.map(Value::from)));
        let chosen = self.strategy.map(|kind| kind.word().to_owned());
        let chosen = tagged(document, "run.strategy", chosen, "fedavg", given)?;
        let known: &[&str] = match chosen.as_str() {
            "fedavgm" => &["learning_rate", "momentum"],
            "fedadagrad" => &["learning_rate", "beta1", "tau"],
            "fedadam" | "fedyogi" => &["learning_rate", "beta1", "beta2", "tau"],
            "scaffold" => &["learning_rate"],
            _ => &[],
        };
        match flags.iter().find(|(key, _, value)| value.is_some() && !known.contains(key)) {
            Some((_, flag, _)) => {
                bail!("--{flag} does not belong to strategy {chosen}: see --strategy in --help")
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use fedpeft_protocol::run::StrategySpec;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        strategy: StrategyOverrides,
    }

    fn strategy(section: &str, flags: &[&str]) -> Result<StrategySpec> {
        let text = format!(
            "[run]\nrounds = 1\ncohort = 1\n{section}\n[model]\nname = 'm'\n[data]\npartition = {{ kind = 'iid' }}"
        );
        let mut document = Document::parse("run.toml", &text)?;
        Flags::try_parse_from([&["flags"], flags].concat())?.strategy.apply(&mut document)?;
        Ok(document.config(None)?.run.strategy)
    }

    #[test]
    fn flags_take_precedence_over_the_file() {
        const ADAM: &str = "strategy = { kind = 'fedadam', learning_rate = 0.5 }";
        let (beta1, beta2, tau) = (0.9, 0.99, 1e-3);
        assert_eq!(strategy("", &[]).unwrap(), StrategySpec::Fedavg);
        let adam = |learning_rate, tau| StrategySpec::Fedadam { learning_rate, beta1, beta2, tau };
        assert_eq!(strategy(ADAM, &["--server-tau=0.1"]).unwrap(), adam(0.5, 0.1));
        assert_eq!(strategy("", &["--strategy=fedadam", "--server-lr=0.2"]).unwrap(), adam(0.2, tau));
        let sgd = "training = { optimizer = { kind = 'sgd' } }";
        let scaffold = StrategySpec::Scaffold { learning_rate: 0.5, population: None };
        assert_eq!(strategy(sgd, &["--strategy=scaffold", "--server-lr=0.5"]).unwrap(), scaffold);
        let momentum = StrategySpec::Fedavgm { learning_rate: 1.0, momentum: 0.5 };
        assert_eq!(strategy(ADAM, &["--strategy=fedavgm", "--server-momentum=0.5"]).unwrap(), momentum);
    }

    #[test]
    fn what_does_not_belong_together_is_named() {
        let error =
            |section: &str, flags: &[&str]| crate::output::one_line(&strategy(section, flags).unwrap_err());
        assert!(error("", &["--server-lr=0.5"]).contains("--server-lr does not belong to strategy fedavg"));
        assert!(error("", &["--strategy=fedavgm", "--server-beta2=0.5"]).contains("--server-beta2"));
        let buffered = "mode = { kind = 'buffered', buffer = 1 }";
        let told = error(buffered, &["--strategy=fedyogi"]);
        assert!(told.contains("strategy of buffered rounds must be fedavg"), "{told}");
        let told = error("", &["--strategy=fedyogi", "--server-lr=-1"]);
        assert!(told.contains("strategy.learning_rate must be greater than 0"), "{told}");
    }
}
