//! What a model reads: its input tensors, and what each is made from.

use std::collections::BTreeSet;

use fedpeft_onnx::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::manifest::FileRef;

/// Most inputs of a model.
const MAX_INPUTS: usize = 16;
/// Most values of one example in one input: 1 GiB of `f32`.
const MAX_VALUES: u64 = 1 << 28;
/// Most dimensions of an example.
const MAX_RANK: usize = 8;
/// Longest name of an input, in bytes.
const MAX_NAME: usize = 256;
/// Largest vocabulary.
pub(crate) const MAX_VOCABULARY: u32 = 1 << 24;

/// One input tensor of the model. A batch has shape `[N, ..shape]`, N dynamic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InputSpec {
    /// Name of the graph input.
    pub name: String,
    /// Type of its values.
    pub dtype: ElementType,
    /// Shape of one example, without the batch dimension: channels, height, width of an image; `[T]` of tokens.
    pub shape: Vec<u64>,
    /// What the values are made from.
    pub source: InputSource,
}

/// Type of the values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// 32-bit floating point.
    F32,
    /// 64-bit integers.
    I64,
}

/// What the values of an input are made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum InputSource {
    /// An image, `[channels, height, width]`: values in `[0, 1]`, minus `mean`, divided by `std`.
    Image {
        /// Per-channel mean to subtract.
        mean: Vec<f32>,
        /// Per-channel deviation to divide by.
        std: Vec<f32>,
    },
    /// Numbers of tokens, `[T]`, padded at the end.
    TokenIds,
    /// 1 for a token, 0 for padding, `[T]`.
    AttentionMask,
    /// Number of the segment that each token belongs to, `[T]`.
    TokenTypes,
    /// Numbers as the data has them.
    Values,
}

/// How text becomes token ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TextSpec {
    /// `tokenizer.json` of the `tokenizers` library, in the folder.
    pub tokenizer: FileRef,
    /// Tokens of one example; longer texts are cut, shorter ones padded.
    pub max_length: u32,
    /// Token ids are `0..vocabulary`.
    pub vocabulary: u32,
    /// Id of padding.
    pub pad_id: u32,
}

/// Inputs that no data fits.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidInput {
    /// None, or too many.
    #[error("a model has 1 to {MAX_INPUTS} inputs, not {0}")]
    Count(usize),
    /// A name that cannot be, or is there twice.
    #[error("input name {0:?} is empty, given twice or longer than {MAX_NAME} bytes")]
    Name(String),
    /// A name that another tensor of the graphs has.
    #[error("input {0:?} has the name of the labels or of an adapter tensor: rename the model's input")]
    NameTaken(String),
    /// A shape that cannot be.
    #[error(
        "input {name:?} has shape {shape:?} per example: 1 to {MAX_RANK} dimensions of at least 1 and at most \
         {MAX_VALUES} values are possible"
    )]
    Shape {
        /// The input.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A source that does not give such values.
    #[error("input {name:?} is made from {source_name}, which needs {needs}")]
    Source {
        /// The input.
        name: String,
        /// What it is made from.
        source_name: &'static str,
        /// What that needs.
        needs: &'static str,
    },
    /// A source that is there twice, or of which there can be no other.
    #[error("two inputs are made from {0}: one is possible")]
    Twice(&'static str),
    /// The text does not fit the inputs.
    #[error("text {0}")]
    Text(String),
}

impl ElementType {
    /// The ONNX type.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::I64 => DType::I64,
        }
    }
}

impl InputSource {
    /// Name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Image { .. } => "images",
            Self::TokenIds => "token ids",
            Self::AttentionMask => "the attention mask",
            Self::TokenTypes => "token types",
            Self::Values => "values",
        }
    }

    /// What it needs of its input, where `shape` and `dtype` do not give it.
    fn lacks(&self, dtype: ElementType, shape: &[u64]) -> Option<&'static str> {
        match self {
            Self::Image { .. } if dtype != ElementType::F32 || shape.len() != 3 => {
                Some("f32 values of shape [channels, height, width]")
            }
            Self::Image { mean, std }
                if mean.len() as u64 != shape[0]
                    || std.len() != mean.len()
                    || !mean.iter().all(|mean| mean.is_finite())
                    || !std.iter().all(|std| std.is_finite() && *std > 0.0) =>
            {
                Some("one finite mean and one std greater than 0 for each channel")
            }
            Self::TokenIds | Self::AttentionMask | Self::TokenTypes
                if dtype != ElementType::I64 || shape.len() != 1 =>
            {
                Some("i64 values of shape [tokens]")
            }
            _ => None,
        }
    }
}

/// Whether data can be fitted to `inputs`.
pub(crate) fn check(inputs: &[InputSpec], text: Option<&TextSpec>) -> Result<(), InvalidInput> {
    if !(1..=MAX_INPUTS).contains(&inputs.len()) {
        return Err(InvalidInput::Count(inputs.len()));
    }
    let (mut names, mut sources) = (BTreeSet::new(), BTreeSet::new());
    for input in inputs {
        let InputSpec { name, dtype, shape, source } = input;
        if name.is_empty() || name.len() > MAX_NAME || !names.insert(name) {
            return Err(InvalidInput::Name(name.chars().take(MAX_NAME).collect()));
        }
        let values = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        let fits = values.is_some_and(|n| (1..=MAX_VALUES).contains(&n));
        if !fits || shape.is_empty() || shape.len() > MAX_RANK {
            let shape = shape.iter().copied().take(MAX_RANK + 1).collect();
            return Err(InvalidInput::Shape { name: name.clone(), shape });
        }
        if let Some(needs) = source.lacks(*dtype, shape) {
            return Err(InvalidInput::Source { name: name.clone(), source_name: source.name(), needs });
        }
        if !matches!(source, InputSource::Values) && !sources.insert(source.name()) {
            return Err(InvalidInput::Twice(source.name()));
        }
    }
    text.map_or(Ok(()), |text| check_text(inputs, text))
}

fn check_text(inputs: &[InputSpec], text: &TextSpec) -> Result<(), InvalidInput> {
    let TextSpec { max_length, vocabulary, pad_id, .. } = *text;
    let ids = inputs.iter().find(|input| input.source == InputSource::TokenIds);
    let tokens = ids.and_then(|ids| ids.shape.first().copied());
    let wrong = |reason: String| Err(InvalidInput::Text(reason));
    match tokens {
        None => wrong("is described, but no input is made from token ids".into()),
        Some(tokens) if tokens != u64::from(max_length) => {
            wrong(format!("has max_length {max_length}, but the model reads {tokens} tokens"))
        }
        _ if !(1..=MAX_VOCABULARY).contains(&vocabulary) => {
            wrong(format!("has a vocabulary of {vocabulary}: 1 to {MAX_VOCABULARY} tokens are possible"))
        }
        _ if pad_id >= vocabulary => {
            wrong(format!("has pad_id {pad_id}, which a vocabulary of {vocabulary} does not have"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use fedpeft_protocol::Digest;

    use super::*;

    fn tokens(name: &str, source: InputSource) -> InputSpec {
        InputSpec { name: name.into(), dtype: ElementType::I64, shape: vec![8], source }
    }

    fn text(max_length: u32, vocabulary: u32, pad_id: u32) -> TextSpec {
        let tokenizer = FileRef { name: "tokenizer.json".into(), digest: Digest::of("t"), size: 1 };
        TextSpec { tokenizer, max_length, vocabulary, pad_id }
    }

    #[test]
    fn token_inputs_with_text_fit() {
        let inputs = [
            tokens("ids", InputSource::TokenIds),
            tokens("mask", InputSource::AttentionMask),
            tokens("types", InputSource::TokenTypes),
        ];
        check(&inputs, Some(&text(8, 30, 0))).unwrap();
        for (wrong, expected) in [
            (text(7, 30, 0), "max_length 7"),
            (text(8, 0, 0), "vocabulary of 0"),
            (text(8, 30, 30), "pad_id 30"),
        ] {
            let error = check(&inputs, Some(&wrong)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(check(&inputs[1..], Some(&text(8, 30, 0))).is_err());
    }

    #[test]
    fn inputs_that_no_data_fits_are_refused() {
        let image = |shape: &[u64], mean: &[f32], std: &[f32]| InputSpec {
            name: "x".into(),
            dtype: ElementType::F32,
            shape: shape.into(),
            source: InputSource::Image { mean: mean.into(), std: std.into() },
        };
        check(&[image(&[1, 2, 2], &[0.0], &[1.0])], None).unwrap();
        let refused = |inputs: &[InputSpec], expected: &str| {
            let error = check(inputs, None).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        };
        refused(&[], "1 to 16 inputs");
        refused(&[image(&[2, 2], &[0.0; 2], &[1.0; 2])], "[channels, height, width]");
        refused(&[image(&[1, 2, 2], &[], &[])], "mean");
        refused(&[image(&[1, 2, 2], &[0.0], &[0.0])], "std");
        refused(&[image(&[1, 2, 2], &[f32::NAN], &[1.0])], "mean");
        refused(&[image(&[1, 0, 2], &[0.0], &[1.0])], "shape");
        refused(&[image(&[1, u64::MAX, 2], &[0.0], &[1.0])], "shape");
        refused(&[InputSpec { shape: vec![], ..tokens("v", InputSource::Values) }], "shape");
        refused(&[InputSpec { dtype: ElementType::F32, ..tokens("v", InputSource::TokenIds) }], "i64");
        let twice = [tokens("a", InputSource::TokenIds), tokens("b", InputSource::TokenIds)];
        refused(&twice, "two inputs are made from token ids");
        let same = [tokens("a", InputSource::TokenIds), tokens("a", InputSource::Values)];
        refused(&same, "given twice");
    }
}
