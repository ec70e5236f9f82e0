//! What a server refuses, and why a round cannot go on.

use crate::{keys::CryptoError, message::Stage};

/// What a server refuses, and why a round cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ServerError {
    #[error("client {client:?} answers in another session or version")]
    Session { client: String },
    #[error("client {client:?} was not asked for an answer of stage {stage:?}")]
    NotAsked { client: String, stage: Stage },
    #[error("client {client:?} is late: stage {stage:?} is closed without it")]
    Late { client: String, stage: Stage },
    #[error("client {client:?} answers stage {stage:?} again, and otherwise: the first answer stands")]
    Contradiction { client: String, stage: Stage },
    #[error("client {client:?} sends {got} bytes in stage {stage:?}, where {expected} are due")]
    Length { client: String, stage: Stage, got: usize, expected: usize },
    #[error("the signature of client {client:?} in stage {stage:?} is not its own, or not of what was asked")]
    Signature { client: String, stage: Stage },
    #[error("{have} clients are left in stage {stage:?}, and {need} are needed: wait, or give the round up")]
    TooFew { stage: Stage, have: usize, need: usize },
    #[error("all stages are closed")]
    Over,
    #[error("stages are open: close {stage:?} first")]
    Open { stage: Stage },
    #[error("what is recorded as the end of stage {stage:?} does not follow from what came before")]
    Restore { stage: Stage },
    #[error("the answer of client {client:?} in stage {stage:?} has not been taken again: replay the log")]
    Incomplete { client: String, stage: Stage },
    #[error(
        "{have} of the {need} shares needed of client {client:?} were given: the round is lost, start another"
    )]
    BelowThreshold { client: String, have: usize, need: usize },
    #[error(
        "the shares of client {client:?} do not fit what it announced: it or a holder deceives; start another round"
    )]
    WrongShares { client: String },
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}
