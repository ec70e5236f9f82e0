//! The local cache: `blobs/<digest>`, and `artifacts/<manifest digest>/` with the files of one artifact
//! folder as hard links to blobs, so that a backbone lies on disk once whatever the methods trained on it.
//!
//! Several processes may use one cache: files appear whole, by renaming, and equal names mean equal bytes.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use fedpeft_protocol::Digest;

use crate::RegistryError;

const CLAIM_POLL: Duration = Duration::from_millis(100);

/// A cache folder.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// A cache in `folder`, which need not exist.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where a blob lies once it is fetched.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.to_string())
    }

    /// Where the folder of a manifest lies once it is pulled.
    pub fn artifacts(&self, manifest: &Digest) -> PathBuf {
        self.folder.join("artifacts").join(manifest.to_string())
    }

    pub(crate) fn prepare(&self, manifest: &Digest) -> Result<(), RegistryError> {
        for folder in [self.folder.join("blobs"), self.artifacts(manifest)] {
            fs::create_dir_all(&folder).map_err(RegistryError::file(folder))?;
        }
        Ok(())
    }

    pub(crate) fn store(&self, digest: &Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let path = self.blob(digest);
        let write = || {
            let folder = self.folder.join("blobs");
            let mut part = tempfile::Builder::new().prefix(".part-").tempfile_in(folder)?;
            part.write_all(bytes)?;
            part.as_file().sync_all()?;
            part.persist(&path).map_err(|error| error.error)
        };
        write().map(|_| ()).map_err(RegistryError::file(&path))
    }

    /// Holds off every other process that claims the same blob, until the file is dropped. The kernel
    /// releases the claim of a process that dies. Where files cannot be locked there is no claim: a blob may
    /// then be fetched twice, never wrongly.
    pub(crate) async fn claim(&self, digest: &Digest) -> Option<fs::File> {
        let path = self.folder.join("blobs").join(format!(".{digest}.lock"));
        let file = fs::File::create(path).ok()?;
        loop {
            match file.try_lock() {
                Ok(()) => return Some(file),
                Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(CLAIM_POLL).await,
                Err(fs::TryLockError::Error(_)) => return None,
            }
        }
    }

    /// Whether a blob lies there with its right size; its bytes were verified when it came.
    pub(crate) fn has(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob(digest)).is_ok_and(|found| found.is_file() && found.len() == size)
    }

    /// Hashes a cached blob and removes it if it is not what its name says.
    pub(crate) fn verify(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let path = self.blob(digest);
        let found = fs::File::open(&path).and_then(Digest::of_reader).map_err(RegistryError::file(&path))?;
        if found == *digest {
            return Ok(true);
        }
        tracing::warn!(path = %path.display(), "cached file is corrupt, fetching it again");
        fs::remove_file(&path).map_err(RegistryError::file(path))?;
        Ok(false)
    }

    /// Makes the blob appear in the folder of `manifest` under `name`.
    pub(crate) fn link(&self, digest: &Digest, manifest: &Digest, name: &str) -> Result<(), RegistryError> {
        let (blob, folder) = (self.blob(digest), self.artifacts(manifest));
        let file = folder.join(name);
        if same_file(&blob, &file) {
            return Ok(());
        }
        place(&blob, &folder, &file).map_err(RegistryError::file(file))
    }
}

/// A link, or a copy on file systems without links, under a temporary name and then renamed: whoever looks
/// sees a whole file.
fn place(blob: &Path, folder: &Path, file: &Path) -> io::Result<()> {
    let temporary = tempfile::Builder::new().prefix(".part-").tempdir_in(folder)?;
    let part = temporary.path().join("file");
    if fs::hard_link(blob, &part).is_err() {
        fs::copy(blob, &part)?;
        fs::File::open(&part)?.sync_all()?;
    }
    fs::rename(&part, file)
}

#[cfg(unix)]
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_: &Path, _: &Path) -> bool {
    false
}
