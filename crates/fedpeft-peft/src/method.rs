//! The methods and their hyper-parameters.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is trained beside the head, which every method trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Method {
    /// Nothing: the head alone (linear probing).
    Head,
    /// Every bias of the backbone (BitFit, Ben Zaken et al., arXiv 2106.10199).
    Bias,
    /// Scales and biases of every normalisation.
    LayerNorm,
    /// Every parameter of the backbone.
    Full,
    /// Low-rank updates of linear layers (Hu et al., arXiv 2106.09685).
    Lora(Lora),
    /// LoRA on the direction of a weight, with its magnitude trained apart (Liu et al., arXiv 2402.09353).
    Dora(Lora),
    /// Bottleneck modules behind the sub-layers (Houlsby et al., arXiv 1902.00751).
    Adapter(Bottleneck),
    /// Learnt tokens beside those of the input (visual prompt tuning, Jia et al., arXiv 2203.12119).
    Prompt(Prompt),
    /// Learnt keys and values in every attention (Li and Liang, arXiv 2101.00190), without reparametrisation.
    Prefix(Prefix),
    /// Learnt scales of keys, values and the inner MLP (Liu et al., arXiv 2205.05638).
    Ia3(Ia3),
}

/// Low-rank updates: `W + alpha / rank B A`, with `A [rank, in]` random and `B [out, rank]` zero at first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// Rank of the update.
    pub rank: u32,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Share of the inputs of `A` that a training step drops, in `[0, 1)`.
    pub dropout: f64,
    /// Whether `A` stays as it is at first, a constant of the graphs, and `B` alone is trained (FFA-LoRA, Sun et al., arXiv
    /// 2403.12313): the adapter has half the values, and the mean of products `B A` is the product of the means.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub freeze_a: bool,
    /// Whether each layer has a residual beside its update, `W + alpha / rank (B A + R)`, `R [out, in]` zero at first: an
    /// input of the graphs that is not trained and no part of the adapter. A server that averages products puts there what
    /// the mean factors do not hold of them (FedEx-LoRA, Singhal et al., arXiv 2410.09432).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub residual: bool,
    /// Linear layers, as globs over the names that `fedpeft artifacts inspect --targets` lists.
    pub targets: Vec<String>,
}

impl Default for Lora {
    fn default() -> Self {
        let targets = vec!["query".into(), "value".into()];
        Self { rank: 8, alpha: 16.0, dropout: 0.0, freeze_a: false, residual: false, targets }
    }
}

/// `h + Up(activation(Down(h)))`, with `Down [features, size]` random and `Up [size, features]` zero at first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bottleneck {
    /// Inner width; by default the features divided by `reduction`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Features per inner unit.
    pub reduction: u32,
    /// Where the modules stand.
    pub placement: Placement,
    /// Between the two layers.
    pub activation: Activation,
    /// One module for all blocks, rather than one each.
    pub shared: bool,
}

impl Default for Bottleneck {
    fn default() -> Self {
        Self {
            size: None,
            reduction: 8,
            placement: Placement::Pfeiffer,
            activation: Activation::Gelu,
            shared: false,
        }
    }
}

/// Sub-layers behind which bottleneck modules stand, before the sub-layer's residual addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Attention and MLP (Houlsby et al., arXiv 1902.00751).
    Houlsby,
    /// MLP only (Pfeiffer et al., arXiv 2005.00247).
    Pfeiffer,
}

/// Activation of a bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x Phi(x)`
    Gelu,
    /// `max(x, 0)`
    Relu,
}

/// Learnt tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prompt {
    /// Tokens.
    pub tokens: u32,
    /// Tokens of its own for every block, rather than for the first alone.
    pub deep: bool,
    /// Where they begin.
    pub init: PromptInit,
}

impl Default for Prompt {
    fn default() -> Self {
        Self { tokens: 10, deep: true, init: PromptInit::Random }
    }
}

/// Where learnt tokens begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PromptInit {
    /// Uniform with the deviation of Xavier's initialisation, as in VPT.
    Random,
    /// Rows of the model's token embedding, spread over its vocabulary.
    Embedding,
}

/// Learnt keys and values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prefix {
    /// Keys and values in front of those of the input, in every block.
    pub tokens: u32,
}

impl Default for Prefix {
    fn default() -> Self {
        Self { tokens: 10 }
    }
}

/// Learnt scales.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ia3 {
    /// Linear layers whose output is scaled.
    pub targets: Vec<String>,
    /// Linear layers whose input is scaled.
    pub feedforward: Vec<String>,
}

impl Default for Ia3 {
    fn default() -> Self {
        Self { targets: vec!["key".into(), "value".into()], feedforward: vec!["down".into()] }
    }
}

impl Method {
    /// Names of all methods.
    pub const NAMES: [&str; 10] =
        ["head", "bias", "layernorm", "full", "lora", "dora", "adapter", "prompt", "prefix", "ia3"];

    /// The method's name in files and on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Bias => "bias",
            Self::LayerNorm => "layernorm",
            Self::Full => "full",
            Self::Lora(_) => "lora",
            Self::Dora(_) => "dora",
            Self::Adapter(_) => "adapter",
            Self::Prompt(_) => "prompt",
            Self::Prefix(_) => "prefix",
            Self::Ia3(_) => "ia3",
        }
    }

    /// Whether it puts new tensors into the graph, rather than choosing among those that are there.
    pub fn is_additive(&self) -> bool {
        !matches!(self, Self::Head | Self::Bias | Self::LayerNorm | Self::Full)
    }

    /// Checks every number, naming the field and the cure.
    pub fn validate(&self) -> Result<(), InvalidMethod> {
        let wrong = |message: String| Err(InvalidMethod(format!("{}: {message}", self.name())));
        match self {
            Self::Head | Self::Bias | Self::LayerNorm | Self::Full => Ok(()),
            Self::Lora(lora) | Self::Dora(lora) => {
                if lora.rank == 0 {
                    return wrong("rank must be at least 1, not 0".into());
                }
                if !(lora.alpha.is_finite() && lora.alpha > 0.0) {
                    return wrong(format!("alpha must be greater than 0, not {}", lora.alpha));
                }
                if !(0.0..1.0).contains(&lora.dropout) {
                    return wrong(format!("dropout must lie in [0, 1), not {}", lora.dropout));
                }
                if lora.residual && matches!(self, Self::Dora(_)) {
                    return wrong(
                        "residual is for lora: dora's magnitudes are no part of the mean, leave residual out"
                            .into(),
                    );
                }
                if lora.residual && lora.freeze_a {
                    return wrong(
                        "residual and freeze_a exclude each other: with freeze_a plain means are exact, leave \
                         residual out"
                            .into(),
                    );
                }
                if lora.targets.is_empty() {
                    wrong("targets is empty: name linear layers".into())
                } else {
                    Ok(())
                }
            }
            Self::Adapter(module) if module.size == Some(0) => wrong("size must be at least 1, not 0".into()),
            Self::Adapter(module) if module.reduction == 0 => {
                wrong("reduction must be at least 1, not 0".into())
            }
            Self::Adapter(_) => Ok(()),
            Self::Prompt(Prompt { tokens, .. }) | Self::Prefix(Prefix { tokens })
                if !(1..=MAX_TOKENS).contains(tokens) =>
            {
                wrong(format!("tokens must be 1 to {MAX_TOKENS}, not {tokens}"))
            }
            Self::Prompt(_) | Self::Prefix(_) => Ok(()),
            Self::Ia3(ia3) if ia3.targets.is_empty() && ia3.feedforward.is_empty() => {
                wrong("targets and feedforward are empty: name linear layers".into())
            }
            Self::Ia3(_) => Ok(()),
        }
    }
}

/// Most tokens a prompt or prefix may have.
const MAX_TOKENS: u32 = 4096;

/// A method, or one that adds tensors together with some that choose among the backbone's: `lora+bias`.
/// Written as a name with default hyper-parameters, as a table with `kind`, or as a list of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Written", into = "Vec<Method>")]
#[schemars(with = "Written")]
pub struct Peft(Vec<Method>);

/// [`Peft`] as written.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Written {
    /// Names joined by `+`.
    Names(String),
    /// One method.
    One(Method),
    /// Several.
    Several(Vec<Part>),
}

/// One of several methods.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Part {
    /// By name.
    Name(String),
    /// With hyper-parameters.
    Method(Method),
}

impl Peft {
    /// Combines methods.
    ///
    /// # Errors
    /// [`InvalidMethod`] naming the method and the field that cannot be, or those that do not combine.
    pub fn new(methods: Vec<Method>) -> Result<Self, InvalidMethod> {
        let fail = |message: String| Err(InvalidMethod(message));
        if methods.is_empty() {
            return fail(format!("no method is given: use one of {}", Method::NAMES.join(", ")));
        }
        for (i, method) in methods.iter().enumerate() {
            method.validate()?;
            if methods[..i].iter().any(|other| other.name() == method.name()) {
                return fail(format!("method {} is given twice", method.name()));
            }
        }
        let additive: Vec<_> = methods.iter().filter(|m| m.is_additive()).map(Method::name).collect();
        if additive.len() > 1 {
            return fail(format!(
                "methods {} cannot be combined: only one of them may put new tensors into the model",
                additive.join(" and ")
            ));
        }
        Ok(Self(methods))
    }

    /// The methods.
    pub fn methods(&self) -> &[Method] {
        &self.0
    }

    /// Whether the layers that it tunes have residuals beside their updates, see [`Lora::residual`].
    pub fn has_residuals(&self) -> bool {
        self.0.iter().any(|method| matches!(method, Method::Lora(lora) if lora.residual))
    }

    /// Replaces the method of the same name, where there is one.
    ///
    /// # Errors
    /// [`InvalidMethod`] as in [`Self::new`].
    pub fn with(mut self, method: Method) -> Result<Self, InvalidMethod> {
        if let Some(slot) = self.0.iter_mut().find(|other| other.name() == method.name()) {
            *slot = method;
        }
        Self::new(self.0)
    }
}

impl From<Method> for Peft {
    fn from(method: Method) -> Self {
        Self(vec![method])
    }
}

impl From<Peft> for Vec<Method> {
    fn from(peft: Peft) -> Self {
        peft.0
    }
}

impl TryFrom<Written> for Peft {
    type Error = InvalidMethod;

    fn try_from(written: Written) -> Result<Self, InvalidMethod> {
        match written {
            Written::Names(names) => names.parse(),
            Written::One(method) => Self::new(vec![method]),
            Written::Several(parts) => {
                let method = |part| match part {
                    Part::Name(name) => by_name(&name),
                    Part::Method(method) => Ok(method),
                };
                Self::new(parts.into_iter().map(method).collect::<Result<_, _>>()?)
            }
        }
    }
}

/// A method that cannot be, or that nothing is called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidMethod(String);

fn by_name(name: &str) -> Result<Method, InvalidMethod> {
    Ok(match name.trim() {
        "head" => Method::Head,
        "bias" => Method::Bias,
        "layernorm" => Method::LayerNorm,
        "full" => Method::Full,
        "lora" => Method::Lora(Lora::default()),
        "dora" => Method::Dora(Lora::default()),
        "adapter" => Method::Adapter(Bottleneck::default()),
        "prompt" => Method::Prompt(Prompt::default()),
        "prefix" => Method::Prefix(Prefix::default()),
        "ia3" => Method::Ia3(Ia3::default()),
        other => {
            let other: String = other.chars().take(80).collect();
            let names = Method::NAMES.join(", ");
            return Err(InvalidMethod(format!("method {other:?} is not known: use one of {names}")));
        }
    })
}

/// Names joined by `+`, with default hyper-parameters.
impl FromStr for Peft {
    type Err = InvalidMethod;

    fn from_str(text: &str) -> Result<Self, InvalidMethod> {
        Self::new(text.split('+').map(by_name).collect::<Result<_, _>>()?)
    }
}

impl fmt::Display for Peft {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0.iter().map(Method::name).collect::<Vec<_>>().join("+"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_strangers_are_told_the_choice() {
        for name in Method::NAMES {
            assert_eq!(name.parse::<Peft>().unwrap().to_string(), name);
        }
        assert_eq!("lora+bias".parse::<Peft>().unwrap().to_string(), "lora+bias");
        let error = "lorra".parse::<Peft>().unwrap_err().to_string();
        assert!(error.starts_with("method \"lorra\" is not known: use one of head, bias, "), "{error}");
    }

    #[test]
    fn names_tables_and_lists_are_read() {
        let read = |text: &str| serde_json::from_str::<Peft>(text);
        assert_eq!(read("\"bias\"").unwrap(), Method::Bias.into());
        let lora = read(r#"{"kind": "lora", "rank": 4}"#).unwrap();
        assert_eq!(lora, Method::Lora(Lora { rank: 4, ..Lora::default() }).into());
        let both = read(r#"[{"kind": "lora", "rank": 4}, "bias"]"#).unwrap();
        assert_eq!(both.to_string(), "lora+bias");
        assert_eq!(read(&serde_json::to_string(&both).unwrap()).unwrap(), both);
        assert!(read(r#"{"kind": "lora", "rnak": 4}"#).is_err());
        let frozen = read(r#"{"kind": "lora", "freeze_a": true}"#).unwrap();
        assert_eq!(frozen, Method::Lora(Lora { freeze_a: true, ..Lora::default() }).into());
        assert_eq!(read(&serde_json::to_string(&frozen).unwrap()).unwrap(), frozen);
        let exact = read(r#"{"kind": "lora", "residual": true}"#).unwrap();
        assert!(exact.has_residuals() && !both.has_residuals());
        assert_eq!(read(&serde_json::to_string(&exact).unwrap()).unwrap(), exact);
        // Programs that do not know the options read what does not use them.
        let written = serde_json::to_string(&both).unwrap();
        assert!(!written.contains("freeze_a") && !written.contains("residual"));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let refuse = |method: Method| Peft::new(vec![method]).unwrap_err().to_string();
        let lora = Lora::default;
        assert!(refuse(Method::Lora(Lora { rank: 0, ..lora() })).contains("rank"));
        assert!(refuse(Method::Dora(Lora { alpha: f64::NAN, ..lora() })).contains("alpha"));
        assert!(refuse(Method::Lora(Lora { dropout: 1.0, ..lora() })).contains("dropout"));
        let exact = || Lora { residual: true, ..lora() };
        assert!(refuse(Method::Dora(exact())).contains("residual is for lora"));
        assert!(refuse(Method::Lora(Lora { freeze_a: true, ..exact() })).contains("freeze_a"));
        assert!(refuse(Method::Prefix(Prefix { tokens: 0 })).contains("tokens"));
        assert!(
            refuse(Method::Adapter(Bottleneck { reduction: 0, ..Bottleneck::default() }))
                .contains("reduction")
        );
        assert!("lora+prompt".parse::<Peft>().unwrap_err().to_string().contains("lora and prompt"));
        assert!("bias+bias".parse::<Peft>().unwrap_err().to_string().contains("twice"));
    }
}
