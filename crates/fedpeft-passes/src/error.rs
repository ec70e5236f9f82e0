//! Why a graph cannot be prepared.

use fedpeft_interp::InterpError;
use fedpeft_onnx::{Node, OnnxError};

/// A graph that a pass cannot work on.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// A node whose output shapes cannot be told.
    #[error("{node}: {reason}")]
    Node {
        /// Operator and name of the node.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// The model's input is not as expected.
    #[error("{0}")]
    Input(String),
    /// Reading or cutting failed.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// Folding a constant failed.
    #[error(transparent)]
    Fold(#[from] InterpError),
}

impl PassError {
    pub(crate) fn node(node: &Node, reason: impl Into<String>) -> Self {
        Self::Node { node: node.label(), reason: reason.into() }
    }
}
