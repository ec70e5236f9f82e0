//! An artifact folder on disk, checked against its manifest.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use fedpeft_artifacts::manifest::{FileRef, MANIFEST_FILE, Manifest};
use fedpeft_protocol::Digest;

use crate::RuntimeError;

/// Largest manifest that is read: some 100,000 tensors.
const MAX_MANIFEST: u64 = 32 << 20;

/// A folder whose files are what its manifest says.
#[derive(Debug, Clone)]
pub struct ArtifactFolder {
    path: PathBuf,
    manifest: Manifest,
}

impl ArtifactFolder {
    /// Reads the manifest and checks size and digest of every file it names.
    ///
    /// # Errors
    /// [`RuntimeError::Artifact`] naming the file that is missing, damaged or of another format.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, RuntimeError> {
        let path = path.into();
        let file = path.join(MANIFEST_FILE);
        let mut bytes = Vec::new();
        let read = File::open(&file).and_then(|f| f.take(MAX_MANIFEST).read_to_end(&mut bytes));
        read.map_err(|error| fail(&file, error))?;
        let manifest = Manifest::from_json(&bytes).map_err(|error| fail(&file, error))?;
        for (entry, _) in manifest.files.all() {
            check(&path.join(&entry.name), entry)?;
        }
        Ok(Self { path, manifest })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, file: &FileRef) -> PathBuf {
        self.path.join(&file.name)
    }
}

fn fail(path: &Path, reason: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::Artifact { path: path.to_owned(), reason: reason.to_string() }
}

fn check(path: &Path, entry: &FileRef) -> Result<(), RuntimeError> {
    let file = File::open(path).map_err(|error| fail(path, error))?;
    let size = file.metadata().map_err(|error| fail(path, error))?.len();
    if size != entry.size {
        return Err(fail(path, format!("has {size} bytes, the manifest says {}", entry.size)));
    }
    let digest = Digest::of_reader(file).map_err(|error| fail(path, error))?;
    if digest != entry.digest {
        let (got, want) = (digest.short(), entry.digest.short());
        return Err(fail(path, format!("digest is {got}..., the manifest says {want}...; fetch it again")));
    }
    Ok(())
}
