//! A download into a file, on its way: `.<digest>.part` beside the file it becomes. It outlives its process, and
//! what it holds is hashed before more is added.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use fedpeft_protocol::Digest;
use sha2::{Digest as _, Sha256};

/// What is there of a blob: its first bytes, hashed.
pub(super) struct Prefix {
    pub hasher: Sha256,
    pub length: u64,
}

impl Prefix {
    pub fn none() -> Self {
        Self { hasher: Sha256::new(), length: 0 }
    }
}

/// The file. Its lock, which the kernel takes from a process that dies, keeps other processes from writing to it.
pub(super) struct Part {
    file: File,
    path: PathBuf,
}

impl Part {
    /// Opens what an earlier process left, or a new one. While another process has it, this one gets a file of
    /// its own, which nobody will find again.
    pub fn open(dest: &Path, digest: &Digest) -> io::Result<Self> {
        let folder = dest.parent().unwrap_or(Path::new("."));
        let path = folder.join(format!(".{digest}.part"));
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                // It may have become the blob between being opened and being locked.
                Ok(()) if same_file(&file, &path) => return Ok(Self { file, path }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock | TryLockError::Error(_)) => break,
            }
        }
        let unique = tempfile::Builder::new().prefix(".part-").tempfile_in(folder)?;
        let (file, path) = unique.keep().map_err(|error| error.error)?;
        Ok(Self { file, path })
    }

    /// Hashes what is there of a blob of `size` bytes.
    pub async fn prefix(&mut self, size: u64) -> io::Result<Prefix> {
        if self.file.metadata()?.len() > size {
            self.clear()?;
        }
        let file = self.file.try_clone()?;
        let hashing = tokio::task::spawn_blocking(move || hash(file));
        hashing.await.map_err(io::Error::other)?
    }

    /// The file, to be written to where its content ends.
    pub fn file(&self) -> io::Result<File> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::End(0))?;
        Ok(file)
    }

    /// Begins anew.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// Gives up.
    pub fn discard(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "unfinished download not removed");
        }
    }

    /// The download is complete; it becomes the file once it is on disk.
    pub async fn become_file(self, dest: &Path) -> io::Result<()> {
        let file = self.file.try_clone()?;
        tokio::task::spawn_blocking(move || file.sync_all()).await.map_err(io::Error::other)??;
        fs::rename(&self.path, dest)
    }
}

fn hash(mut file: File) -> io::Result<Prefix> {
    let (mut hasher, mut length) = (Sha256::new(), 0);
    let mut chunk = vec![0; 1 << 18];
    file.rewind()?;
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(Prefix { hasher, length }),
            n => {
                hasher.update(&chunk[..n]);
                length += n as u64;
            }
        }
    }
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_: &File, path: &Path) -> bool {
    // An open file cannot be renamed here.
    path.exists()
}
