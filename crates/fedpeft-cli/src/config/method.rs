//! `--method` and the hyper-parameters of methods as flags.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use fedpeft_peft::{Activation, Bottleneck, Ia3, Lora, Method, Peft, Placement, Prefix, Prompt, PromptInit};

/// A PEFT method and its hyper-parameters.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Method")]
pub struct MethodArgs {
    /// PEFT method: head, bias, layernorm, full, lora, dora, adapter, prompt, prefix or ia3; several joined by +,
    /// such as lora+bias.
    #[arg(long, value_parser = str::parse::<Peft>)]
    method: Option<Peft>,
    /// Rank of low-rank updates (lora, dora).
    #[arg(long, value_name = "R")]
    rank: Option<u32>,
    /// Numerator of the scale of low-rank updates, whose denominator is the rank (lora, dora).
    #[arg(long, value_name = "A", allow_negative_numbers = true)]
    lora_alpha: Option<f64>,
    /// Share of the inputs of low-rank updates dropped in training (lora, dora).
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    lora_dropout: Option<f64>,
    /// Leave the first factor of low-rank updates as it is at first and train the second alone: half the adapter, and
    /// a mean without bias (FFA-LoRA; lora, dora).
    #[arg(long)]
    freeze_a: bool,
    /// Give each tuned layer a residual beside its low-rank update, which --aggregation lora-exact fills with what mean
    /// factors do not hold of the mean update (lora).
    #[arg(long)]
    residual: bool,
    /// Linear layers to tune, as globs separated by commas, such as query,value or 'blocks.*.mlp.*' (lora, dora,
    /// ia3); `fedpeft artifacts inspect --targets MODEL` lists the names.
    #[arg(long, value_name = "GLOBS", value_delimiter = ',')]
    targets: Option<Vec<String>>,
    /// Linear layers whose input is scaled (ia3).
    #[arg(long, value_name = "GLOBS", value_delimiter = ',')]
    feedforward: Option<Vec<String>>,
    /// Inner width of bottleneck modules (adapter).
    #[arg(long, value_name = "N", conflicts_with = "reduction")]
    bottleneck: Option<u32>,
    /// Features per inner unit of bottleneck modules (adapter).
    #[arg(long, value_name = "N")]
    reduction: Option<u32>,
    /// Sub-layers behind which bottleneck modules stand (adapter).
    #[arg(long, value_enum)]
    placement: Option<PlacementArg>,
    /// Activation of bottleneck modules (adapter).
    #[arg(long, value_enum)]
    activation: Option<ActivationArg>,
    /// One bottleneck module for all blocks (adapter).
    #[arg(long)]
    shared: bool,
    /// Learnt tokens (prompt, prefix).
    #[arg(long, value_name = "N")]
    tokens: Option<u32>,
    /// Whether every block has prompt tokens of its own or the first alone has (prompt).
    #[arg(long, value_enum)]
    depth: Option<DepthArg>,
    /// Where prompt tokens begin (prompt).
    #[arg(long, value_enum)]
    prompt_init: Option<PromptInitArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PlacementArg {
    /// Attention and MLP.
    Houlsby,
    /// MLP only.
    Pfeiffer,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ActivationArg {
    Gelu,
    Relu,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DepthArg {
    Shallow,
    Deep,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PromptInitArg {
    Random,
    /// Rows of the model's token embedding.
    Embedding,
}

impl MethodArgs {
    /// The method that the flags make of `given`, the one of the file; none where neither says anything.
    pub fn over(&self, given: Option<Peft>) -> Result<Option<Peft>> {
        // A method named again keeps the hyper-parameters of the file.
        let base = match (&self.method, given) {
            (Some(named), Some(given)) if named.to_string() == given.to_string() => Some(given),
            (Some(named), _) => Some(named.clone()),
            (None, given) => given,
        };
        let flags = self.flags();
        let Some(base) = base else {
            return match flags.first() {
                Some((flag, _)) => bail!("{flag} needs --method"),
                None => Ok(None),
            };
        };
        for (flag, methods) in flags {
            if !base.methods().iter().any(|method| methods.contains(&method.name())) {
                bail!("{flag} belongs to method {}, the method is {base}", methods.join(" or "));
            }
        }
        Ok(Some(Peft::new(base.methods().iter().map(|method| self.tuned(method.clone())).collect())?))
    }

    /// The flags that are given, with the methods they belong to.
    fn flags(&self) -> Vec<(&'static str, &'static [&'static str])> {
        const LOW_RANK: &[&str] = &["lora", "dora"];
        const ADAPTER: &[&str] = &["adapter"];
        let all: [(&'static str, &'static [&'static str], bool); 15] = [
            ("--rank", LOW_RANK, self.rank.is_some()),
            ("--lora-alpha", LOW_RANK, self.lora_alpha.is_some()),
            ("--lora-dropout", LOW_RANK, self.lora_dropout.is_some()),
            ("--freeze-a", LOW_RANK, self.freeze_a),
            ("--residual", &["lora"], self.residual),
            ("--targets", &["lora", "dora", "ia3"], self.targets.is_some()),
            ("--feedforward", &["ia3"], self.feedforward.is_some()),
            ("--bottleneck", ADAPTER, self.bottleneck.is_some()),
            ("--reduction", ADAPTER, self.reduction.is_some()),
            ("--placement", ADAPTER, self.placement.is_some()),
            ("--activation", ADAPTER, self.activation.is_some()),
            ("--shared", ADAPTER, self.shared),
            ("--tokens", &["prompt", "prefix"], self.tokens.is_some()),
            ("--depth", &["prompt"], self.depth.is_some()),
            ("--prompt-init", &["prompt"], self.prompt_init.is_some()),
        ];
        all.into_iter().filter(|(_, _, given)| *given).map(|(flag, methods, _)| (flag, methods)).collect()
    }

    fn tuned(&self, method: Method) -> Method {
        let low_rank = |lora: Lora| Lora {
            rank: self.rank.unwrap_or(lora.rank),
            alpha: self.lora_alpha.unwrap_or(lora.alpha),
            dropout: self.lora_dropout.unwrap_or(lora.dropout),
            freeze_a: self.freeze_a || lora.freeze_a,
            residual: self.residual || lora.residual,
            targets: self.targets.clone().unwrap_or(lora.targets),
        };
        match method {
            Method::Lora(lora) => Method::Lora(low_rank(lora)),
            Method::Dora(lora) => Method::Dora(low_rank(lora)),
            Method::Adapter(module) => Method::Adapter(Bottleneck {
                size: if self.reduction.is_some() { None } else { self.bottleneck.or(module.size) },
                reduction: self.reduction.unwrap_or(module.reduction),
                placement: self.placement.map_or(module.placement, |placement| match placement {
                    PlacementArg::Houlsby => Placement::Houlsby,
                    PlacementArg::Pfeiffer => Placement::Pfeiffer,
                }),
                activation: self.activation.map_or(module.activation, |activation| match activation {
                    ActivationArg::Gelu => Activation::Gelu,
                    ActivationArg::Relu => Activation::Relu,
                }),
                shared: self.shared || module.shared,
            }),
            Method::Prompt(prompt) => Method::Prompt(Prompt {
                tokens: self.tokens.unwrap_or(prompt.tokens),
                deep: self.depth.map_or(prompt.deep, |depth| matches!(depth, DepthArg::Deep)),
                init: self.prompt_init.map_or(prompt.init, |init| match init {
                    PromptInitArg::Random => PromptInit::Random,
                    PromptInitArg::Embedding => PromptInit::Embedding,
                }),
            }),
            Method::Prefix(prefix) => Method::Prefix(Prefix { tokens: self.tokens.unwrap_or(prefix.tokens) }),
            Method::Ia3(ia3) => Method::Ia3(Ia3 {
                targets: self.targets.clone().unwrap_or(ia3.targets),
                feedforward: self.feedforward.clone().unwrap_or(ia3.feedforward),
            }),
            other @ (Method::Head | Method::Bias | Method::LayerNorm | Method::Full) => other,
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
        method: MethodArgs,
    }

    fn over(flags: &str, given: Option<&str>) -> Result<Option<Peft>> {
        let words = std::iter::once("p").chain(flags.split_whitespace());
        let program = Program::try_parse_from(words)?;
        program.method.over(given.map(|text| serde_json::from_str(text).unwrap()))
    }

    #[test]
    fn flags_change_what_the_file_says() {
        let file = r#"{"kind": "lora", "rank": 4, "targets": ["key"]}"#;
        let peft = over("--method lora --lora-alpha 2", Some(file)).unwrap().unwrap();
        let expected = Lora { rank: 4, alpha: 2.0, targets: vec!["key".into()], ..Lora::default() };
        assert_eq!(peft.methods(), [Method::Lora(expected)]);
        let peft = over("--freeze-a", Some(r#"{"kind": "dora"}"#)).unwrap().unwrap();
        assert_eq!(peft.methods(), [Method::Dora(Lora { freeze_a: true, ..Lora::default() })]);
        let peft = over("--residual", Some(file)).unwrap().unwrap();
        assert!(peft.has_residuals());
        let peft = over("--method lora+bias --targets query,up", None).unwrap().unwrap();
        assert_eq!(peft.to_string(), "lora+bias");
        assert_eq!(over("", None).unwrap(), None);
    }

    #[test]
    fn flags_of_other_methods_are_refused() {
        let message = |flags: &str| over(flags, None).unwrap_err().to_string();
        assert_eq!(
            message("--method bias --rank 3"),
            "--rank belongs to method lora or dora, the method is bias"
        );
        assert!(message("--method ia3 --freeze-a").starts_with("--freeze-a belongs to method lora or dora"));
        assert_eq!(
            message("--method dora --residual"),
            "--residual belongs to method lora, the method is dora"
        );
        assert!(message("--method lora --residual --freeze-a").contains("exclude each other"));
        assert_eq!(message("--tokens 3"), "--tokens needs --method");
        assert!(message("--method prompt --tokens 0").contains("tokens must be 1 to"));
    }
}
