//! From text to token ids, by the tokenizer that belongs to a model: `tokenizer.json` as Hugging Face writes it.

use std::{
    fs::File,
    io::{self, Read as _},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
};

use tokenizers::{PostProcessor as _, TruncationDirection, TruncationParams, TruncationStrategy};

/// Largest tokenizer file that is read.
const MAX_BYTES: u64 = 256 << 20;

/// Names that tokenizers give the padding token, where the file does not say which it is.
const PAD_TOKENS: [&str; 4] = ["[PAD]", "<pad>", "<|endoftext|>", "</s>"];

/// A text that cannot become tokens.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no tokenizer.
    #[error("{} is no tokenizer: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Sequences would have no room for text.
    #[error("max_length is {max_length}, but {} adds {special} special tokens to every text: raise it", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Tokens asked for.
        max_length: usize,
        /// Special tokens.
        special: usize,
    },
    /// The tokenizer belongs to another model.
    #[error(
        "{} gives token ids up to {largest}, but the model embeds only {embedded} tokens (0 to {}): \
         tokenizer and model do not belong together", path.display(), embedded.saturating_sub(1)
    )]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// Largest id of the tokenizer.
        largest: u32,
        /// Rows of the model's word embedding.
        embedded: usize,
    },
    /// No token is for padding.
    #[error("{} names no padding token: give its id", .0.display())]
    NoPadding(PathBuf),
    /// A text was refused.
    #[error("{reason}")]
    Encode {
        /// Why.
        reason: String,
    },
}

/// A text as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, then padding.
    pub ids: Vec<u32>,
    /// 1 for a token, 0 for padding.
    pub mask: Vec<u32>,
}

/// A tokenizer that truncates on the right.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    max_length: usize,
    largest: u32,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("max_length", &self.max_length).finish()
    }
}

impl Tokenizer {
    /// Reads `path`, a `tokenizer.json`, for sequences of at most `max_length` tokens, the special ones included.
    /// What the file says about truncation and padding is replaced.
    ///
    /// # Errors
    /// [`TextError`], one line that names the file.
    pub fn load(path: &Path, max_length: usize) -> Result<Self, TextError> {
        let failed = |source| TextError::Io { path: path.to_owned(), source };
        let format = |reason: String| TextError::Format { path: path.to_owned(), reason: one_line(&reason) };
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        if len > MAX_BYTES {
            return Err(format(format!("{len} bytes are more than {MAX_BYTES}")));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        serde_json::from_slice::<Parts>(&bytes).map_err(|error| format(error.to_string()))?;
        let inner = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(format)?;
        let mut inner = inner.map_err(|error| format(error.to_string()))?;
        let largest = inner.get_vocab(true).into_values().max();
        let largest = largest.ok_or_else(|| format("its vocabulary is empty".to_owned()))?;

        let special = inner.get_post_processor().map_or(0, |post| post.added_tokens(false));
        if max_length <= special {
            return Err(TextError::Length { path: path.to_owned(), max_length, special });
        }
        let truncation = TruncationParams {
            direction: TruncationDirection::Right,
            max_length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        inner.with_truncation(Some(truncation)).map_err(|error| format(error.to_string()))?;
        inner.with_padding(None);
        // What is damaged in its template shows with the first text.
        drop(guarded(|| inner.encode_fast("a", true)).map_err(format)?);
        Ok(Self { path: path.to_owned(), inner, max_length, largest })
    }

    /// Most tokens of a text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Ids there may be: the largest one and 1.
    pub fn vocabulary(&self) -> usize {
        self.largest as usize + 1
    }

    /// Checks that a model that embeds `rows` tokens knows every id.
    pub fn check_vocabulary(&self, rows: usize) -> Result<(), TextError> {
        if self.vocabulary() <= rows {
            return Ok(());
        }
        Err(TextError::Vocabulary { path: self.path.clone(), largest: self.largest, embedded: rows })
    }

    /// Id of the padding token, where one has a usual name.
    pub fn pad_id(&self) -> Result<u32, TextError> {
        let found = PAD_TOKENS.iter().find_map(|token| self.inner.token_to_id(token));
        found.ok_or_else(|| TextError::NoPadding(self.path.clone()))
    }

    /// Token ids of `text` with its special tokens, at most [`Self::max_length`].
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let failed = |reason: String| TextError::Encode { reason: one_line(&reason) };
        let encoding = guarded(|| self.inner.encode_fast(text, true)).map_err(failed)?;
        Ok(encoding.map_err(|error| failed(error.to_string()))?.get_ids().to_vec())
    }

    /// Token ids of `text`, padded with `pad_id` to [`Self::max_length`], and their mask.
    pub fn encode(&self, text: &str, pad_id: u32) -> Result<Encoded, TextError> {
        let mut ids = self.ids(text)?;
        let mut mask = vec![1; ids.len()];
        ids.resize(self.max_length, pad_id);
        mask.resize(self.max_length, 0);
        Ok(Encoded { ids, mask })
    }
}

/// The part of a tokenizer that `tokenizers` panics about where it is no JSON, checked before that crate sees it.
#[derive(serde::Deserialize)]
struct Parts {
    #[serde(default, rename = "decoder")]
    _decoder: Option<serde_json::Value>,
}

/// Runs `work` of `tokenizers`, which panics about some files that are JSON (a damaged table of a `Precompiled`
/// normalizer, a template with a token that it does not define): a tokenizer comes from elsewhere, and must not end the
/// process that reads it.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|_| "its parts do not fit together".to_owned())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
