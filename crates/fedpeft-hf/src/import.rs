//! From a folder to a model.

use std::path::Path;

use fedpeft_onnx::Model;

use crate::{
    Config, Family, HfError,
    encoder::{self, WORDS},
    weights::Weights,
};

/// Token ids, `i64 [N, T]`.
pub const INPUT_IDS: &str = "input_ids";
/// 1 where a token is and 0 where padding is, `i64 [N, T]`.
pub const ATTENTION_MASK: &str = "attention_mask";
/// 0 or 1, `i64 [N, T]`; BERT only.
pub const TOKEN_TYPE_IDS: &str = "token_type_ids";
/// Features of every token, `f32 [N, T, C]`.
pub const OUTPUT: &str = "last_hidden_state";
/// The file with the architecture.
pub const CONFIG_FILE: &str = "config.json";
/// The file with the parameters.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// An imported encoder.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// [`INPUT_IDS`], [`ATTENTION_MASK`] and, for BERT, [`TOKEN_TYPE_IDS`] to [`OUTPUT`].
    pub model: Model,
    /// The architecture.
    pub config: Config,
    /// Tokens of a sequence, T.
    pub length: usize,
}

/// Reads the model folder `folder` and builds it for sequences of `length` tokens.
///
/// RoBERTa counts positions from the first token on, so its sequences must be padded on the right, as its
/// tokenizer does.
///
/// # Errors
/// [`HfError`], one line that names the file and what is wrong.
pub fn import(folder: &Path, length: usize) -> Result<Encoder, HfError> {
    let config = Config::read(folder)?;
    let available = config.max_length();
    if !(1..=available).contains(&length) {
        return Err(HfError::Length { asked: length, available });
    }
    let prefixes: &[&str] = match config.family {
        Family::Bert => &["bert."],
        Family::Roberta => &["roberta."],
        Family::DistilBert => &["distilbert."],
    };
    let weights = Weights::open(&folder.join(WEIGHTS_FILE), &format!("{WORDS}.weight"), prefixes)?;
    let model = Model::new(encoder::build(&config, &weights, length)?);
    Ok(Encoder { model, config, length })
}
