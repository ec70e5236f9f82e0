//! Why a client does not do what a server asks.

use crate::{keys::CryptoError, message::Stage};

/// Why a client does not do what a server asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error("client {0:?} with its identity is not in the cohort: enrol it, or wait for another round")]
    NotInvited(String),
    #[error("a request of another session or version")]
    Session,
    #[error(
        "a request of stage {asked:?}, where {expects:?} is next: a round is gone through once, from the start"
    )]
    Stage { asked: Stage, expects: Stage },
    #[error("this client is not among the members that the server names: it was too late for this round")]
    LeftOut,
    #[error("{have} members are left, and a sum of fewer than {need} would say too much of each")]
    Quorum { have: usize, need: usize },
    #[error("{have} holders are left of this client's shares, and {need} are needed")]
    Holders { have: usize, need: usize },
    #[error("client {client:?} was not there in the stage before: the server contradicts itself")]
    NotThere { client: String },
    #[error(
        "the server names other survivors than those this client has signed, which would unmask single clients"
    )]
    OtherSurvivors,
    #[error("the signature of client {client:?} does not fit {what}: the server or the client deceives")]
    Signature { client: String, what: &'static str },
    #[error("client {0:?} has keys of another one")]
    SameKeys(String),
    #[error("what came from client {client:?} was tampered with, or it deceives: {error}")]
    Peer { client: String, error: CryptoError },
    #[error("{got} bytes, where the members named need {expected}")]
    Length { got: usize, expected: usize },
    #[error(
        "an update of {values} values, where the round has {expected}: encode it with the round's encoding"
    )]
    Update { values: usize, expected: usize },
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}
