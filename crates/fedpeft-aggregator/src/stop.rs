//! Why driving a run ends early.

use fedpeft_bus::BusError;

/// The end of driving a run. Whether the run itself has ended is another question.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// The record was changed by somebody else: another owner, or a cancellation. Nothing more may be written.
    #[error("the run was taken over or changed by another process")]
    Fenced,
    /// The run cannot go on; its record will say why.
    #[error("{0}")]
    Failed(String),
    /// The broker is in trouble. The run goes on from its durable state once the trouble is over.
    #[error(transparent)]
    Trouble(BusError),
}

impl From<BusError> for Stop {
    fn from(error: BusError) -> Self {
        match error {
            BusError::Conflict { .. } => Self::Fenced,
            BusError::NoBlob { .. }
            | BusError::BlobTooLarge { .. }
            | BusError::Corrupt { .. }
            | BusError::MessageTooLarge { .. }
            | BusError::Wire { .. }
            | BusError::Key { .. } => Self::Failed(error.to_string()),
            passing => Self::Trouble(passing),
        }
    }
}
