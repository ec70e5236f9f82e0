//! Why something cannot be exported.

use std::{io, path::PathBuf};

use fedpeft_artifacts::{CheckpointError, FolderError, manifest::ManifestError};
use fedpeft_onnx::OnnxError;
use fedpeft_passes::PassError;

/// An export that fails, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The adapter has another number of values.
    #[error(
        "the adapter has {found} values, these artifacts train {expected}: give the artifacts that it was trained with"
    )]
    Values {
        /// Values in the layout of the artifacts.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// The checkpoint is of another adapter.
    #[error("{path}: {source}: give the artifacts that it was trained with", path = path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: CheckpointError,
    },
    /// The checkpoint has a tensor too many.
    #[error("{path}: tensor {tensor:?} is not trained by these artifacts: give the artifacts that it was trained with", path = path.display())]
    Stranger {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// HF peft cannot express the adapter.
    #[error("format peft: {0}")]
    Peft(String),
    /// There is something at the destination.
    #[error("{path} is not empty: give a new or empty folder", path = .0.display())]
    Occupied(PathBuf),
    /// The artifacts cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The evaluation graph cannot be read, or the model not be written.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The evaluation graph is not one of ours.
    #[error("the evaluation graph cannot be merged: {0}")]
    Graph(#[from] PassError),
    /// A safetensors file cannot be made.
    #[error(transparent)]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// The manifest cannot be written down.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A description cannot be written down.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ExportError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
