//! What can be wrong with an ONNX file or graph.

use std::path::PathBuf;

/// A model that cannot be read, written or worked on.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The file cannot be opened, read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are no ONNX model.
    #[error("{path} is not an ONNX model: {reason}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The model is well-formed but uses something we do not support.
    #[error("{0}")]
    Unsupported(String),
    /// A tensor's data does not fit its shape, or lies outside its file.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A value that no node, input or initializer produces.
    #[error("no node, input or initializer is named {name:?}{hint}")]
    NoSuchValue {
        /// The name asked for.
        name: String,
        /// Names that come near, as text beginning with `; `, or nothing.
        hint: String,
    },
    /// The nodes depend on each other in a circle, or two produce one value.
    #[error("the graph is not a directed acyclic graph: {0}")]
    Graph(String),
}

impl OnnxError {
    pub(crate) fn tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.to_owned(), reason: reason.into() }
    }
}
