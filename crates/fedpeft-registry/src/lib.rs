//! The model registry: artifact folders in the blob store under names and versions.
//!
//! [`Registry`] is the service behind `fedpeft.v1.api.models.*`; [`push_folder`] and [`pull`] are what
//! programs use on the other side. A push stores blobs first and then asks for a version, so a version
//! that exists is complete.

mod cache;
mod pull;
mod push;
mod service;

pub use cache::Cache;
pub use pull::{Pulled, manifest, pull};
pub use push::push_folder;
pub use service::Registry;

use std::path::PathBuf;

use fedpeft_artifacts::manifest::{MANIFEST_LIMIT, ManifestError};
use fedpeft_bus::BusError;

/// A push or pull that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The manifest cannot be used.
    #[error("{origin}: {source}")]
    Manifest {
        /// File or blob it came from.
        origin: String,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A local file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// A file is not the one that the manifest names.
    #[error("{} is not the file its manifest names: {reason}; rebuild the artifacts", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
}

impl RegistryError {
    fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
