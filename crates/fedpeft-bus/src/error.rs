//! What can go wrong on the bus, by kind: callers match on the variant and never on the text.

use std::path::{Path, PathBuf};

use fedpeft_protocol::{Digest, wire::WireError};

/// An operation on the bus that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// No broker answers at the address.
    #[error(
        "cannot reach a NATS server at {server}: {reason}; start one there or name another with --server"
    )]
    Unreachable {
        /// Address that was tried.
        server: String,
        /// What happened.
        reason: String,
    },
    /// The broker refuses this client.
    #[error(
        "NATS server {server} refuses this client: {reason}; give valid credentials with --creds (they may be missing, expired or revoked)"
    )]
    Refused {
        /// Address that was tried.
        server: String,
        /// What the broker said.
        reason: String,
    },
    /// The credentials do not allow it.
    #[error(
        "{what}: the NATS server forbids it to these credentials: use those of another role, or of the right client; after an upgrade the operator runs `fedpeft auth push`"
    )]
    Forbidden {
        /// What was attempted.
        what: String,
    },
    /// A stream is there that somebody made in another way.
    #[error(
        "stream {stream} of the NATS server cannot be used: {reason}; while no run is active, remove it with `nats stream rm {stream}`: fedpeft-registry and fedpeft-aggregator make it anew"
    )]
    UnfitStream {
        /// Its name.
        stream: String,
        /// What it lacks.
        reason: &'static str,
    },
    /// A stream is missing that these credentials must not make.
    #[error(
        "the NATS server has no stream {stream} yet: start fedpeft-registry or fedpeft-aggregator there, which make it"
    )]
    NoTopology {
        /// The stream.
        stream: String,
    },
    /// The credentials file cannot be used.
    #[error("credentials file {} cannot be used: {reason}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file with a certificate or a private key cannot be used.
    #[error("TLS file {}: {reason}", path.display())]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The broker is there, but no encrypted connection to it came about.
    #[error("no TLS with the NATS server {server}: {reason}; {cure}")]
    Tls {
        /// Address that was tried.
        server: String,
        /// What happened.
        reason: String,
        /// What to do about it.
        cure: &'static str,
    },
    /// The broker runs without JetStream.
    #[error(
        "NATS server {server} has no JetStream: start it with `nats-server -js`, or see in its log why it cannot keep any"
    )]
    NoJetStream {
        /// Its address.
        server: String,
    },
    /// The broker did not answer in time; whether the operation took effect is unknown.
    #[error("{what}: the NATS server did not answer in time")]
    Timeout {
        /// What was attempted.
        what: String,
    },
    /// A compare-and-set lost: the record is not at the expected revision.
    #[error("record {key} of {bucket} was changed by another process")]
    Conflict {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// A key that no record can have.
    #[error("{key:?} is not a record key: use A-Z a-z 0-9 _ - joined by dots")]
    Key {
        /// The refused key, cut to 80 characters.
        key: String,
    },
    /// The blob is not in the store.
    #[error("blob {digest} is not in the blob store")]
    NoBlob {
        /// Its name.
        digest: Digest,
    },
    /// The store of the broker takes no more bytes; nothing half-stored counts.
    #[error(
        "{what}: the store of the NATS server is full ({reason}): free space there, or raise its max_file_store \
         or the limit of the bucket, and repeat"
    )]
    StoreFull {
        /// What was attempted.
        what: String,
        /// What the broker said.
        reason: String,
    },
    /// The blob is larger than the caller allows.
    #[error("blob {digest} has {size} bytes, more than the {limit} allowed here")]
    BlobTooLarge {
        /// Its name.
        digest: Digest,
        /// Its declared size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The bytes of a blob or file are not those its digest names.
    #[error("blob {digest} is corrupt: {reason}")]
    Corrupt {
        /// The digest asked for.
        digest: Digest,
        /// What differs.
        reason: String,
    },
    /// A message does not fit the broker's limit.
    #[error("{what} has {size} bytes, the NATS server takes {limit}: raise max_payload there")]
    MessageTooLarge {
        /// The message.
        what: String,
        /// Its size with headers.
        size: usize,
        /// The broker's limit.
        limit: usize,
    },
    /// A message could not be encoded or decoded.
    #[error("{what}: {source}")]
    Wire {
        /// The message.
        what: String,
        /// What is wrong with it.
        source: WireError,
    },
    /// Nobody serves the endpoint.
    #[error("nobody answers {endpoint}: start {service} on this NATS server")]
    NoService {
        /// The endpoint.
        endpoint: String,
        /// The program that serves it.
        service: &'static str,
    },
    /// The service answered with an error.
    #[error("{0}")]
    Api(ApiError),
    /// A local file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// The broker reported an error.
    #[error("{what}: {reason}")]
    Broker {
        /// What was attempted.
        what: String,
        /// What the broker or the client library said.
        reason: String,
    },
}

impl BusError {
    pub(crate) fn broker(what: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Broker { what: what.into(), reason: one_line(&reason.to_string()) }
    }

    pub(crate) fn wire(what: impl Into<String>, source: WireError) -> Self {
        Self::Wire { what: what.into(), source }
    }

    pub(crate) fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    /// Whether the operation may succeed when it is simply done again: the broker is away or busy.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. } | Self::Broker { .. })
    }

    /// Whether another process won a compare-and-set.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}

/// An error a service returns to its caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// 400 bad request, 404 not found, 409 conflict, 429 too many requests, 500 internal.
    pub code: u16,
    /// One line for people.
    pub message: String,
}

impl ApiError {
    /// An error with its code and its line.
    pub fn new(code: u16, message: impl std::fmt::Display) -> Self {
        Self { code, message: one_line(&message.to_string()) }
    }

    /// 400: the request cannot be.
    pub fn bad_request(message: impl std::fmt::Display) -> Self {
        Self::new(400, message)
    }

    /// 404: what it names does not exist.
    pub fn not_found(message: impl std::fmt::Display) -> Self {
        Self::new(404, message)
    }

    /// 409: it contradicts what exists.
    pub fn conflict(message: impl std::fmt::Display) -> Self {
        Self::new(409, message)
    }

    /// 429: the service has no room for the request, which had no effect and may be repeated.
    pub fn too_many(message: impl std::fmt::Display) -> Self {
        Self::new(Self::TOO_MANY, message)
    }

    /// Code of [`Self::too_many`].
    pub const TOO_MANY: u16 = 429;

    /// 500: the service failed.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, message)
    }
}

/// Handlers use `?` on bus operations: what fails there is the service's problem, not the caller's.
impl From<BusError> for ApiError {
    fn from(error: BusError) -> Self {
        match error {
            BusError::Api(error) => error,
            BusError::Conflict { .. } => Self::conflict(error),
            other => Self::internal(other),
        }
    }
}

/// Error texts travel in a NATS header and are printed as one line: control characters become spaces.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_errors_are_one_bounded_line() {
        let error = ApiError::internal(format!("a\r\nb{}", "x".repeat(1000)));
        assert!(error.message.starts_with("a  b") && error.message.len() == 500);
    }
}
