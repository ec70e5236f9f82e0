//! What can go wrong while credentials are made.

use std::path::{Path, PathBuf};

use fedpeft_protocol::id::InvalidId;

/// Why there are no credentials. Messages are one line and never hold a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The folder holds no authority.
    #[error("{} holds no keys: make them with `fedpeft auth init`", .0.display())]
    Absent(PathBuf),
    /// The folder holds one already.
    #[error("{} is there already: --force replaces it, and all credentials it issued become void", .0.display())]
    Occupied(PathBuf),
    /// Another process works in the folder.
    #[error("{} is in use by another command: wait until it ends", .0.display())]
    Busy(PathBuf),
    /// A name that is no identifier.
    #[error(transparent)]
    Name(#[from] InvalidId),
    /// A name that has credentials.
    #[error(
        "{name} has credentials already: revoke them first, or replace and revoke them at once with --force"
    )]
    Issued {
        /// The name.
        name: String,
    },
    /// A name without credentials.
    #[error("{name} has no credentials to revoke: `fedpeft auth list` shows who has")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A client's credentials without a client, or another role's with some.
    #[error("{0}")]
    Clients(&'static str),
    /// A lifetime that ends beyond all time.
    #[error("credentials cannot be valid for so long: give a shorter --expires")]
    Lifetime,
    /// A key cannot be used.
    #[error("a key cannot be used: {0}")]
    Key(String),
    /// A key file cannot be used.
    #[error("key file {}: {reason}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The list of what was issued cannot be read.
    #[error("{}: {reason}; restore it from a copy, for without it nothing can be revoked", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Claims cannot be written as JSON.
    #[error("claims cannot be encoded: {0}")]
    Encode(String),
    /// A file or folder failed.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
}

impl AuthError {
    /// Texts of the key library describe the kind of failure and no key.
    pub(crate) fn key(error: nkeys::error::Error) -> Self {
        Self::Key(error.to_string())
    }

    pub(crate) fn file(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { path, source }
    }
}
