//! `config.json`: the architecture, whichever of the families' vocabularies describes it.

use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::Value;

use crate::{CONFIG_FILE, HfError};

/// Largest width, number of positions or layers that is believed.
const MAX_SIZE: usize = 1 << 20;
/// Largest vocabulary that is believed.
const MAX_VOCABULARY: usize = 1 << 24;

/// How parameters are named and positions counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `bert`
    Bert,
    /// `roberta`, `xlm-roberta`, `camembert`: positions begin behind that of the padding token.
    Roberta,
    /// `distilbert`: no token types.
    DistilBert,
}

/// The function between the two layers of a block's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x Phi(x)` with the error function.
    Gelu,
    /// The same with the hyperbolic tangent in place of the error function.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

/// An encoder of the BERT family.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Names and positions.
    pub family: Family,
    /// Rows of the word embedding.
    pub vocabulary: usize,
    /// Width of a token's features.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads; they divide the width.
    pub heads: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Rows of the position embedding.
    pub positions: usize,
    /// First row of it that a token takes.
    pub first_position: usize,
    /// Rows of the token type embedding; 0 where there is none.
    pub token_types: usize,
    /// Added to variances in layer normalisation.
    pub epsilon: f32,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Id of the padding token.
    pub pad_id: u32,
}

/// Keys that BERT and RoBERTa share.
#[derive(Deserialize)]
struct BertKeys {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "tiny")]
    layer_norm_eps: f32,
    #[serde(default = "gelu")]
    hidden_act: String,
}

/// The keys of DistilBERT; its normalisation has a fixed epsilon.
#[derive(Deserialize)]
struct DistilBertKeys {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    activation: String,
}

fn two() -> usize {
    2
}
fn tiny() -> f32 {
    1e-12
}
fn gelu() -> String {
    "gelu".to_owned()
}

/// Switches that change the network; absent or at these values it is the one we build.
const REQUIRED: [(&str, &str); 3] =
    [("position_embedding_type", "absolute"), ("is_decoder", "false"), ("add_cross_attention", "false")];

impl Config {
    /// Reads `config.json` in `folder`.
    pub fn read(folder: &Path) -> Result<Self, HfError> {
        let path = folder.join(CONFIG_FILE);
        let text = fs::read_to_string(&path).map_err(|source| HfError::Io { path: path.clone(), source })?;
        Self::parse(&path, &text)
    }

    /// Reads the text of `config.json`; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, HfError> {
        let config = |reason: String| HfError::Config { path: path.to_owned(), reason };
        let value: Value = serde_json::from_str(text).map_err(|error| config(format!("no JSON: {error}")))?;
        let model_type = value.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let family = match model_type {
            "bert" => Family::Bert,
            "roberta" | "xlm-roberta" | "camembert" => Family::Roberta,
            "distilbert" => Family::DistilBert,
            other => {
                return Err(config(format!(
                    "model_type {other:?} is not supported: bert, roberta, xlm-roberta, camembert and distilbert are; \
                     export others to ONNX"
                )));
            }
        };
        for (key, required) in REQUIRED {
            match value.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::String(found)) if found == required => {}
                Some(Value::Bool(false)) if required == "false" => {}
                Some(found) => {
                    return Err(config(format!("{key} {found} is not supported, only {required} is")));
                }
            }
        }
        let default_pad = u32::from(family == Family::Roberta);
        let pad_id = match value.get("pad_token_id") {
            None | Some(Value::Null) => default_pad,
            Some(id) => id
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| config(format!("pad_token_id {id} is no token id")))?,
        };
        let parsed = match family {
            Family::Bert | Family::Roberta => BertKeys::deserialize(&value).map(|keys| {
                (
                    Self {
                        family,
                        vocabulary: keys.vocab_size,
                        hidden: keys.hidden_size,
                        layers: keys.num_hidden_layers,
                        heads: keys.num_attention_heads,
                        intermediate: keys.intermediate_size,
                        positions: keys.max_position_embeddings,
                        first_position: if family == Family::Roberta { pad_id as usize + 1 } else { 0 },
                        token_types: keys.type_vocab_size,
                        epsilon: keys.layer_norm_eps,
                        activation: Activation::Gelu,
                        pad_id,
                    },
                    keys.hidden_act,
                )
            }),
            Family::DistilBert => DistilBertKeys::deserialize(&value).map(|keys| {
                (
                    Self {
                        family,
                        vocabulary: keys.vocab_size,
                        hidden: keys.dim,
                        layers: keys.n_layers,
                        heads: keys.n_heads,
                        intermediate: keys.hidden_dim,
                        positions: keys.max_position_embeddings,
                        first_position: 0,
                        token_types: 0,
                        epsilon: tiny(),
                        activation: Activation::Gelu,
                        pad_id,
                    },
                    keys.activation,
                )
            }),
        };
        let (mut parsed, activation) = parsed.map_err(|error| config(error.to_string()))?;
        parsed.activation = match activation.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => {
                return Err(config(format!(
                    "activation {other:?} is not supported: gelu, gelu_new and relu are"
                )));
            }
        };
        parsed.check().map_err(config)?;
        Ok(parsed)
    }

    fn check(&self) -> Result<(), String> {
        let Self { hidden, heads, .. } = *self;
        let sizes = [
            ("the vocabulary", self.vocabulary, MAX_VOCABULARY),
            ("the hidden size", hidden, MAX_SIZE),
            ("the number of layers", self.layers, MAX_SIZE),
            ("the number of heads", heads, MAX_SIZE),
            ("the intermediate size", self.intermediate, MAX_SIZE),
            ("the number of positions", self.positions, MAX_SIZE),
        ];
        if let Some((what, size, most)) = sizes.iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
            return Err(format!("{what} is {size}: it must be 1 to {most}"));
        }
        if !hidden.is_multiple_of(heads) {
            return Err(format!("{heads} heads do not divide the hidden size {hidden}"));
        }
        if self.token_types > MAX_SIZE {
            return Err(format!(
                "the number of token types is {}: it must be at most {MAX_SIZE}",
                self.token_types
            ));
        }
        if self.first_position >= self.positions {
            return Err(format!("no position is left behind that of the padding token, {}", self.pad_id));
        }
        if self.pad_id as usize >= self.vocabulary {
            return Err(format!(
                "pad_token_id {} is beyond the vocabulary of {}",
                self.pad_id, self.vocabulary
            ));
        }
        if !(self.epsilon.is_finite() && self.epsilon >= 0.0) {
            return Err(format!("layer_norm_eps {} is no small number", self.epsilon));
        }
        Ok(())
    }

    /// Whether token types are an input: RoBERTa has one type, DistilBERT none.
    pub fn reads_token_types(&self) -> bool {
        self.family == Family::Bert && self.token_types > 0
    }

    /// Most tokens of a sequence.
    pub fn max_length(&self) -> usize {
        self.positions - self.first_position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERT: &str = r#"{"model_type": "bert", "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 12}"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("m/config.json"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn families_count_positions_their_way() {
        let bert = parse(BERT).unwrap();
        assert_eq!((bert.first_position, bert.max_length(), bert.token_types, bert.pad_id), (0, 12, 2, 0));
        let roberta = parse(&BERT.replace("bert", "xlm-roberta")).unwrap();
        assert_eq!((roberta.first_position, roberta.max_length(), roberta.pad_id), (2, 10, 1));
        let distil = r#"{"model_type": "distilbert", "vocab_size": 30, "dim": 8, "n_layers": 1, "n_heads": 2,
            "hidden_dim": 16, "max_position_embeddings": 12, "activation": "relu", "pad_token_id": null}"#;
        let distil = parse(distil).unwrap();
        assert_eq!((distil.token_types, distil.activation), (0, Activation::Relu));
    }

    #[test]
    fn what_is_not_supported_is_named_in_one_line() {
        let with = |key: &str| BERT.replacen('{', &format!("{{{key}, "), 1);
        for (text, said) in [
            (BERT.replace("\"bert\"", "\"deberta\""), "model_type \"deberta\""),
            (with(r#""hidden_act": "silu""#), "activation \"silu\""),
            (
                with(r#""position_embedding_type": "relative_key""#),
                "position_embedding_type \"relative_key\"",
            ),
            (with(r#""is_decoder": true"#), "is_decoder true"),
            (with(r#""pad_token_id": 30"#), "pad_token_id 30"),
            (with(r#""pad_token_id": -1"#), "pad_token_id -1"),
            (BERT.replace("\"num_attention_heads\": 2", "\"num_attention_heads\": 3"), "3 heads"),
            (BERT.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0"), "number of layers is 0"),
            (BERT.replace("hidden_size", "width"), "hidden_size"),
            ("[1]".to_owned(), "model_type"),
            ("{".to_owned(), "no JSON"),
        ] {
            let error = parse(&text).unwrap_err();
            let fits = error.starts_with("m/config.json") && error.contains(said) && !error.contains('\n');
            assert!(fits, "{said}: {error}");
        }
    }
}
