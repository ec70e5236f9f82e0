//! What artifacts are built from: the same keys in `[model]` and as flags.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use fedpeft_artifacts::{BuildOptions, ExportedText, TextOptions, manifest::TaskSpec};
use fedpeft_peft::{Peft, Pooling};
use fedpeft_text::Tokenizer;
use serde::Serialize;

use super::task::Task;

/// Tokens of a text where nothing else is said.
const MAX_LENGTH: u32 = 128;

/// What artifacts are built from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Backbone {
    /// An export of a model of images.
    Images {
        /// Exported model.
        onnx: PathBuf,
        /// Value at which it is cut.
        output: String,
        /// Height and width of the images.
        input_size: u32,
    },
    /// An export of a model of texts.
    Texts {
        /// Exported model.
        onnx: PathBuf,
        /// Value at which it is cut.
        output: String,
        /// Its `tokenizer.json`.
        tokenizer: PathBuf,
        /// Tokens of a text; longer ones are cut.
        max_length: u32,
    },
    /// A Hugging Face folder of a model of texts.
    HuggingFace {
        /// The folder.
        hf: PathBuf,
        /// Tokens of a text; longer ones are cut.
        max_length: u32,
    },
}

/// Keys that say what a backbone is read from, as given.
#[derive(Debug, Default)]
pub struct BackboneKeys {
    /// ONNX file.
    pub onnx: Option<PathBuf>,
    /// Hugging Face folder.
    pub hf: Option<PathBuf>,
    /// Value at which an ONNX model is cut.
    pub output: Option<String>,
    /// Height and width of images.
    pub input_size: Option<u32>,
    /// Tokens of a text.
    pub max_length: Option<u32>,
    /// Tokenizer of an ONNX model of texts.
    pub tokenizer: Option<PathBuf>,
}

impl BackboneKeys {
    /// The backbone they describe; none where neither a file nor a folder is named.
    pub fn resolve(self) -> Result<Option<Backbone>> {
        let Self { onnx, hf, output, input_size, max_length, tokenizer } = self;
        let of_onnx = [
            ("output", output.is_some()),
            ("input_size", input_size.is_some()),
            ("tokenizer", tokenizer.is_some()),
        ];
        let stray = |keys: &[(&str, bool)], of: &str| match keys.iter().find(|(_, given)| *given) {
            Some((key, _)) => bail!("{key} belongs to {of}, which is not given"),
            None => Ok(()),
        };
        match (onnx, hf) {
            (Some(_), Some(_)) => bail!("onnx and hf are both given: keep one"),
            (None, Some(hf)) => {
                stray(&of_onnx, "onnx")?;
                Ok(Some(Backbone::HuggingFace { hf, max_length: max_length.unwrap_or(MAX_LENGTH) }))
            }
            (None, None) => {
                stray(&of_onnx, "onnx")?;
                stray(&[("max_length", max_length.is_some())], "hf or onnx")?;
                Ok(None)
            }
            (Some(onnx), None) => {
                let missing = |key: &str| anyhow!("{key} is missing: artifacts built from onnx need it");
                let output = output.ok_or_else(|| missing("output"))?;
                match (input_size, max_length.is_some() || tokenizer.is_some()) {
                    (Some(_), true) => bail!(
                        "input_size is for models of images, max_length and tokenizer are for models of texts: keep one"
                    ),
                    (Some(input_size), false) => Ok(Some(Backbone::Images { onnx, output, input_size })),
                    (None, true) => {
                        let tokenizer = tokenizer.ok_or_else(|| missing("tokenizer"))?;
                        let max_length = max_length.unwrap_or(MAX_LENGTH);
                        Ok(Some(Backbone::Texts { onnx, output, tokenizer, max_length }))
                    }
                    (None, false) => Err(missing("input_size (of images) or tokenizer (of texts)")),
                }
            }
        }
    }
}

impl Backbone {
    /// The file or folder that is read.
    pub fn path(&self) -> &Path {
        match self {
            Self::Images { onnx: path, .. }
            | Self::Texts { onnx: path, .. }
            | Self::HuggingFace { hf: path, .. } => path,
        }
    }

    /// The options of the builder. Reads what says how many tokens a model of texts knows.
    pub fn options(&self, task: &Task, method: Peft, seed: u64) -> Result<BuildOptions> {
        let mut options = match self {
            Self::Images { onnx, output, input_size } => {
                let (side, spec) = (*input_size as usize, task.spec(None)?);
                let options = BuildOptions::image_classification(onnx, output, side, spec.width(), method);
                BuildOptions { task: spec, ..options }
            }
            Self::Texts { onnx, output, tokenizer, max_length } => {
                let length = *max_length as usize;
                let exported = ExportedText::read(onnx, output, length)?;
                let loaded = Tokenizer::load(tokenizer, length)?;
                let rows = exported.vocabulary.unwrap_or_else(|| loaded.vocabulary());
                loaded.check_vocabulary(rows)?;
                let vocabulary = u32::try_from(rows)?;
                BuildOptions {
                    model: onnx.clone(),
                    output: output.clone(),
                    inputs: exported.inputs,
                    text: Some(TextOptions {
                        tokenizer: tokenizer.clone(),
                        vocabulary,
                        pad_id: loaded.pad_id()?,
                    }),
                    task: task.spec(Some(vocabulary))?,
                    method,
                    seed,
                    pooling: Pooling::Mean,
                    storage: Default::default(),
                    dp_sgd: false,
                }
            }
            Self::HuggingFace { hf, max_length } => {
                let length = *max_length as usize;
                let spec = task.spec(Some(2))?;
                if matches!(spec, TaskSpec::CausalLm { .. }) {
                    bail!("causal-lm needs a decoder, but models of the BERT family see the whole text");
                }
                let options = BuildOptions::hugging_face(hf, length, spec, method)?;
                if let Some(text) = &options.text {
                    Tokenizer::load(&text.tokenizer, length)?.check_vocabulary(text.vocabulary as usize)?;
                }
                options
            }
        };
        options.seed = seed;
        if let Some(pooling) = task.pooling() {
            options.pooling = pooling;
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_what_is_read() {
        let path = || Some(PathBuf::from("m"));
        let onnx = || BackboneKeys { onnx: path(), output: Some("y".into()), ..Default::default() };
        let resolved = |keys: BackboneKeys| keys.resolve().unwrap();
        assert_eq!(resolved(BackboneKeys::default()), None);
        let images = resolved(BackboneKeys { input_size: Some(56), ..onnx() });
        assert!(matches!(images, Some(Backbone::Images { input_size: 56, .. })));
        let texts = resolved(BackboneKeys { tokenizer: path(), ..onnx() });
        assert!(matches!(texts, Some(Backbone::Texts { max_length: 128, .. })));
        let folder = resolved(BackboneKeys { hf: path(), max_length: Some(8), ..Default::default() });
        assert!(matches!(folder, Some(Backbone::HuggingFace { max_length: 8, .. })));
        let refused = |keys: BackboneKeys, expected: &str| {
            let error = keys.resolve().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(onnx(), "input_size (of images) or tokenizer (of texts) is missing");
        refused(BackboneKeys { max_length: Some(8), ..onnx() }, "tokenizer is missing");
        refused(BackboneKeys { input_size: Some(8), tokenizer: path(), ..onnx() }, "keep one");
        refused(BackboneKeys { hf: path(), ..onnx() }, "keep one");
        refused(BackboneKeys { hf: path(), input_size: Some(8), ..Default::default() }, "belongs to onnx");
        refused(BackboneKeys { max_length: Some(8), ..Default::default() }, "belongs to hf or onnx");
        refused(BackboneKeys { onnx: path(), ..Default::default() }, "output is missing");
    }
}
