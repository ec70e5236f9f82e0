//! What artifacts are built from: an ONNX export, or a Hugging Face model folder.

use std::{fs::File, path::Path};

use fedpeft_hf::{ATTENTION_MASK, CONFIG_FILE, Config, INPUT_IDS, OUTPUT, TOKEN_TYPE_IDS, WEIGHTS_FILE};
use fedpeft_onnx::Model;
use fedpeft_peft::{Peft, Pooling};
use fedpeft_protocol::Digest;

use crate::{
    BuildError, BuildOptions, InputOptions, Storage, TextOptions,
    manifest::{InputSource, TaskSpec},
};

/// The file in a model folder that makes token ids of text.
const TOKENIZER_FILE: &str = "tokenizer.json";

impl BuildOptions {
    /// An encoder of the BERT family in the Hugging Face model folder `folder`, for texts of at most `max_length`
    /// tokens. Its features are the mean of all tokens' but padding's.
    pub fn hugging_face(
        folder: &Path,
        max_length: usize,
        task: TaskSpec,
        method: impl Into<Peft>,
    ) -> Result<Self, BuildError> {
        let config = Config::read(folder)?;
        let input = |name: &str, source| InputOptions::tokens(name, source, max_length);
        let mut inputs =
            vec![input(INPUT_IDS, InputSource::TokenIds), input(ATTENTION_MASK, InputSource::AttentionMask)];
        if config.reads_token_types() {
            inputs.push(input(TOKEN_TYPE_IDS, InputSource::TokenTypes));
        }
        let text = TextOptions {
            tokenizer: folder.join(TOKENIZER_FILE),
            // Bounded when the configuration was read.
            vocabulary: config.vocabulary as u32,
            pad_id: config.pad_id,
        };
        Ok(Self {
            model: folder.to_owned(),
            output: OUTPUT.to_owned(),
            inputs,
            text: Some(text),
            task,
            method: method.into(),
            seed: 0,
            pooling: Pooling::Mean,
            storage: Storage::default(),
            dp_sgd: false,
        })
    }
}

/// Digest of what a model is read from: of an ONNX file its own; of a folder one of the digests of its
/// configuration and its weights.
///
/// # Errors
/// [`BuildError::Io`] naming the file.
pub fn source_digest(model: &Path) -> Result<Digest, BuildError> {
    if !model.is_dir() {
        return digest_of(model);
    }
    let (config, weights) = (digest_of(&model.join(CONFIG_FILE))?, digest_of(&model.join(WEIGHTS_FILE))?);
    Ok(Digest::of(format!("{config}\n{weights}\n")))
}

/// Reads the model of `options`.
pub(crate) fn read(options: &BuildOptions) -> Result<Model, BuildError> {
    if !options.model.is_dir() {
        return Ok(Model::load(&options.model)?);
    }
    let ids = options.inputs.iter().find(|input| input.source == InputSource::TokenIds);
    let length = ids.and_then(|ids| ids.shape.first()).copied().unwrap_or(0);
    Ok(fedpeft_hf::import(&options.model, length)?.model)
}

pub(crate) fn digest_of(path: &Path) -> Result<Digest, BuildError> {
    let opened = File::open(path).and_then(Digest::of_reader);
    opened.map_err(|source| BuildError::Io { path: path.to_owned(), source })
}
