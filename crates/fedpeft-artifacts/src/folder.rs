//! An artifact folder on disk.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use fedpeft_protocol::Digest;

use crate::{
    CheckpointError, Manifest,
    manifest::{FileRef, MANIFEST_FILE, MANIFEST_LIMIT, ManifestError},
    read_checkpoint,
};

/// A folder whose manifest has been read.
#[derive(Debug, Clone)]
pub struct ArtifactFolder {
    path: PathBuf,
    manifest: Manifest,
    digest: Digest,
}

/// A folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The manifest is wrong.
    #[error("{path}: {source}", path = path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// The checkpoint is wrong.
    #[error("{path}: {source}", path = path.display())]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// Why.
        source: CheckpointError,
    },
    /// A file is not the one the manifest names.
    #[error(
        "{path} has digest {found}, the manifest says {expected}: the file is damaged or was changed, build or pull the \
         artifacts again",
        path = path.display()
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// Digest in the manifest.
        expected: Digest,
        /// Digest of the file.
        found: Digest,
    },
}

impl ArtifactFolder {
    /// Reads the manifest in `path`. Files are not read; see [`Self::verify`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let path = path.into();
        let file = path.join(MANIFEST_FILE);
        let bytes = read(&file, MANIFEST_LIMIT)?;
        let manifest =
            Manifest::from_json(&bytes).map_err(|source| FolderError::Manifest { path: file, source })?;
        Ok(Self { path, manifest, digest: Digest::of(&bytes) })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Digest of the manifest, which names the whole folder.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where one of its files is.
    pub fn file(&self, file: &FileRef) -> PathBuf {
        self.path.join(&file.name)
    }

    /// Compares every file with its digest.
    pub fn verify(&self) -> Result<(), FolderError> {
        for (file, _) in self.manifest.all_files() {
            let path = self.file(file);
            let opened = File::open(&path).and_then(Digest::of_reader);
            let found = opened.map_err(|source| FolderError::Io { path: path.clone(), source })?;
            if found != file.digest {
                return Err(FolderError::Digest { path, expected: file.digest, found });
            }
        }
        Ok(())
    }

    /// The initial adapter, flat in layout order.
    pub fn initial_adapter(&self) -> Result<Vec<f32>, FolderError> {
        let path = self.file(&self.manifest.files.checkpoint);
        let bytes = read(&path, self.manifest.adapter.bytes() + CHECKPOINT_HEADER)?;
        read_checkpoint(&bytes, &self.manifest.adapter)
            .map_err(|source| FolderError::Checkpoint { path, source })
    }
}

/// Most bytes of a checkpoint beside its values.
const CHECKPOINT_HEADER: u64 = 64 << 20;

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FolderError> {
    let failed = |source| FolderError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(failed(io::Error::other(format!("it has more than {limit} bytes"))));
    }
    Ok(bytes)
}
