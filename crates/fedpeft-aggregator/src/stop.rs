//! Why driving a run ends early.

use std::time::Duration;

use fedpeft_bus::BusError;

use crate::spool::Unusable;

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
    /// An adapter that does not fit a message has no place outside of memory. The run goes on, here or in another
    /// aggregator, as with [`Self::Trouble`].
    #[error(transparent)]
    Spool(#[from] Unusable),
}

/// Trouble with the broker passes soon, or it is checked again at no cost.
const SOON: Duration = Duration::from_secs(2);
/// Until somebody makes room, and a round of large updates is not fetched again and again.
const LATER: Duration = Duration::from_secs(10);

impl Stop {
    /// When to try again.
    pub fn pause(&self) -> Duration {
        match self {
            Self::Spool(_) | Self::Trouble(BusError::StoreFull { .. }) => LATER,
            Self::Fenced | Self::Failed(_) | Self::Trouble(_) => SOON,
        }
    }
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
