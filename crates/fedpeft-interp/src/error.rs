//! Why something cannot be evaluated.

/// A node, tensor or graph that cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterpError {
    /// It is well-formed, but beyond this evaluator.
    #[error("{0}")]
    Unsupported(String),
    /// It breaks the rules of its operator, or has not been given what it needs.
    #[error("{0}")]
    Invalid(String),
    /// One of the above, at a node.
    #[error("{node}: {fault}")]
    Node {
        /// The node's label.
        node: String,
        /// What is wrong there.
        fault: Box<InterpError>,
    },
}

pub(crate) type Result<T> = std::result::Result<T, InterpError>;

impl InterpError {
    /// Whether the node might be right and only this evaluator cannot run it.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Unsupported(_) => true,
            Self::Invalid(_) => false,
            Self::Node { fault, .. } => fault.is_unsupported(),
        }
    }

    pub(crate) fn at(self, node: String) -> Self {
        Self::Node { node, fault: Box::new(self) }
    }
}

/// Ends a function with [`InterpError::Invalid`].
macro_rules! invalid {
    ($($message:tt)*) => {
        return Err($crate::InterpError::Invalid(format!($($message)*)))
    };
}

/// Ends a function with [`InterpError::Unsupported`].
macro_rules! unsupported {
    ($($message:tt)*) => {
        return Err($crate::InterpError::Unsupported(format!($($message)*)))
    };
}

pub(crate) use {invalid, unsupported};
