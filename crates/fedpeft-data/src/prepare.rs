//! From examples to batches.

mod pixels;
mod tokens;

use thiserror::Error;

use crate::dataset::Content;
use crate::federation::ClientData;
use crate::labels::{LabelKind, Labels};

pub use pixels::{Input, InputError};
pub use tokens::{TextInput, TokenColumn};

use pixels::Fit;
use tokens::Tokens;

/// Where part of a batch is written: a tensor of the model, row-major.
#[derive(Debug)]
pub enum Column<'a> {
    /// Real values.
    F32(&'a mut [f32]),
    /// Whole ones.
    I64(&'a mut [i64]),
}

/// Data that does not fit a model's inputs.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FitError {
    /// Texts for a model of images.
    #[error("{0} holds texts, but the model reads images")]
    NotImages(String),
    /// Images for a model of texts.
    #[error("{0} holds images, but the model reads tokens")]
    NotTexts(String),
    /// Colour for a model with another number of channels.
    #[error("{path} holds colour images, but the model's input has {channels} channels, not 3")]
    Channels {
        /// The data.
        path: String,
        /// Channels of the model's input.
        channels: usize,
    },
    /// Tokens as targets where there are none.
    #[error("the model predicts tokens, but {0} holds images")]
    NoTokens(String),
    /// A text cannot be made tokens.
    #[error("{path}: example {example} cannot be tokenised: {reason}")]
    Tokenize {
        /// The data.
        path: String,
        /// Position in it.
        example: usize,
        /// Why.
        reason: String,
    },
    /// A text gives no or too many tokens.
    #[error("{path}: example {example} gives {found} tokens, the model reads 1 to {length}")]
    Length {
        /// The data.
        path: String,
        /// Position in it.
        example: usize,
        /// Tokens it gives.
        found: usize,
        /// Most tokens of the model.
        length: usize,
    },
}

/// A batch cannot be filled: a mistake of the caller.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchError {
    /// A buffer has the wrong length.
    #[error("a batch of {examples} examples needs {needed} values in its {buffer} buffer, which has {found}")]
    Length {
        /// `pixel`, `token` or `label`.
        buffer: &'static str,
        /// Examples asked for.
        examples: usize,
        /// Values they need.
        needed: usize,
        /// Values there is room for.
        found: usize,
    },
    /// A buffer has the wrong type.
    #[error("the {buffer} buffer must hold {needed}")]
    Type {
        /// `pixel`, `token` or `label`.
        buffer: &'static str,
        /// `f32` or `i64`.
        needed: &'static str,
    },
    /// There are more or fewer input buffers than the data was prepared for.
    #[error("the data was prepared for {needed} inputs, not {found}")]
    Inputs {
        /// Inputs it was prepared for.
        needed: usize,
        /// Buffers there are.
        found: usize,
    },
    /// Labels are tokens, but the data is none.
    #[error("only texts are labelled with their tokens")]
    TokensNeeded,
    /// There is no such example.
    #[error("example {index} asked for, but there are {len}")]
    Index {
        /// The example.
        index: usize,
        /// Examples there are.
        len: usize,
    },
}

impl BatchError {
    fn check(buffer: &'static str, examples: usize, needed: usize, found: usize) -> Result<(), Self> {
        if needed == found { Ok(()) } else { Err(Self::Length { buffer, examples, needed, found }) }
    }
}

/// A client's data fitted to a model's inputs.
#[derive(Debug, Clone)]
pub struct Prepared {
    data: ClientData,
    fitted: Fitted,
}

#[derive(Debug, Clone)]
enum Fitted {
    Pixels(Fit),
    Tokens(Tokens),
}

impl Prepared {
    /// For a model of images.
    pub(crate) fn images(data: ClientData, input: Input) -> Result<Self, FitError> {
        let dataset = data.dataset();
        let path = dataset.path.display();
        match (&dataset.content, &dataset.labels) {
            (Content::Texts(_), _) => Err(FitError::NotImages(path.to_string())),
            (Content::Images(_), Labels::Tokens { .. }) => Err(FitError::NoTokens(path.to_string())),
            (Content::Images(images), _) if ![1, input.channels()].contains(&images.channels()) => {
                Err(FitError::Channels { path: path.to_string(), channels: input.channels() })
            }
            (Content::Images(images), _) => {
                let fitted = Fitted::Pixels(Fit::new(images.clone(), input));
                Ok(Self { data, fitted })
            }
        }
    }

    /// For a model of tokens: every text is tokenised now, once.
    pub(crate) fn texts(data: ClientData, input: &TextInput<'_>) -> Result<Self, FitError> {
        let Content::Texts(texts) = &data.dataset().content else {
            return Err(FitError::NotTexts(data.dataset().path.display().to_string()));
        };
        let examples = data.positions().map(|position| (position, texts[position].as_ref()));
        let tokens = Tokens::new(examples, input, &data.dataset().path)?;
        Ok(Self { data, fitted: Fitted::Tokens(tokens) })
    }

    /// The data.
    pub fn data(&self) -> &ClientData {
        &self.data
    }

    /// Writes the examples at `indices` (positions in `0..len` of this data) to `inputs`, one buffer per input of
    /// the model, and their labels to `labels`, see [`LabelKind`]. Images are one input
    /// `[indices, channels, height, width]`; tokens are the inputs they were prepared for, `[indices, T]` each.
    /// Allocates nothing.
    pub fn fill(
        &self,
        indices: &[usize],
        inputs: &mut [Column<'_>],
        labels: Column<'_>,
    ) -> Result<(), BatchError> {
        let len = self.data.len();
        if let Some(&index) = indices.iter().find(|index| **index >= len) {
            return Err(BatchError::Index { index, len });
        }
        let examples = || indices.iter().map(|index| self.data.position(*index));
        match &self.fitted {
            Fitted::Pixels(fit) => {
                let [pixels] = inputs else {
                    return Err(BatchError::Inputs { needed: 1, found: inputs.len() });
                };
                fit.fill(examples(), indices.len(), pixels)?;
            }
            Fitted::Tokens(tokens) => tokens.fill(indices, inputs)?,
        }
        let own = &self.data.dataset().labels;
        let found = match &labels {
            Column::F32(values) => values.len(),
            Column::I64(values) => values.len(),
        };
        match (own.width(), &self.fitted) {
            (Some(width), _) => {
                BatchError::check("label", indices.len(), indices.len() * width, found)?;
                own.write(examples(), labels)
            }
            (None, Fitted::Tokens(tokens)) => tokens.fill_labels(indices, labels),
            (None, Fitted::Pixels(_)) => Err(BatchError::TokensNeeded),
        }
    }

    /// What the labels are.
    pub fn label_kind(&self) -> LabelKind {
        self.data.label_kind()
    }
}
