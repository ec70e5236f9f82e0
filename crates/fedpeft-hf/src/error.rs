//! Why a model folder cannot be imported.

use std::{io, path::PathBuf};

use fedpeft_passes::PassError;

/// A folder that is no model we can build.
#[derive(Debug, thiserror::Error)]
pub enum HfError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The weights are there in another form.
    #[error("{} is missing, {found} is there: save the model in one file with safe_serialization", path.display())]
    OtherWeights {
        /// The file looked for.
        path: PathBuf,
        /// What was found in its place.
        found: &'static str,
    },
    /// The configuration says something that cannot be.
    #[error("{}: {reason}", path.display())]
    Config {
        /// `config.json`.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is not safetensors.
    #[error("{} is not a safetensors file: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A parameter is not there.
    #[error("{} holds no tensor {name:?}{hint}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The parameter.
        name: String,
        /// What comes near, beginning with `; `, or nothing.
        hint: String,
    },
    /// A parameter has another shape or type than the configuration says.
    #[error("{}: tensor {name:?} {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The parameter.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// More tokens are asked for than the model has positions.
    #[error("max_length is {asked}: this model reads sequences of 1 to {available} tokens")]
    Length {
        /// Tokens asked for.
        asked: usize,
        /// Tokens there are positions for.
        available: usize,
    },
    /// The graph came out wrong.
    #[error(transparent)]
    Graph(#[from] PassError),
}
