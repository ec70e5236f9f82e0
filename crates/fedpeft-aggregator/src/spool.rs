//! Adapters outside of memory.
//!
//! A full fine-tuning adapter takes gigabytes, and the sum of its updates four times as many. So what does not fit a
//! message is never held in memory beside the sum: it lies in a file without a name, which the system removes however
//! the process ends, and is read in chunks.

use std::{
    fs::File,
    io::{self, Cursor, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use fedpeft_bus::{Bus, BusError, Measured};
use fedpeft_protocol::Digest;
use fedpeft_strategy::{Encoded, Fold, Spool as Readable, SpoolError, Weight, distance, distance_spooled};

/// An encoded adapter.
#[derive(Debug, Clone)]
pub(crate) enum Adapter {
    /// In memory.
    Held(Bytes),
    /// In a file, read by one at a time.
    Spooled(Arc<File>),
}

impl Adapter {
    /// One that nobody will look at.
    pub fn none() -> Self {
        Self::Held(Bytes::new())
    }

    /// Its bytes, from the first on. Several may read at once.
    pub fn reader(&self) -> Box<dyn Readable + Send> {
        match self {
            Self::Held(bytes) => Box::new(Cursor::new(bytes.clone())),
            Self::Spooled(file) => Box::new(Part { file: file.clone(), start: 0, end: None, at: 0 }),
        }
    }

    /// Adds it to `fold`; `base` is the adapter that it began with, where the fold reads it.
    pub fn add_to(&self, fold: &mut Fold, base: &Self, weight: Weight) -> Result<(), SpoolError> {
        let encoded = match self {
            Self::Held(bytes) => Encoded::Held(bytes.clone()),
            Self::Spooled(_) => Encoded::Spooled(self.reader()),
        };
        fold.add(encoded, &mut *base.reader(), weight)
    }

    /// Stores it as a blob.
    pub async fn store(&self, bus: &Bus) -> Result<Digest, BusError> {
        Ok(match self {
            Self::Held(bytes) => bus.put_blob(bytes.clone()).await?.digest,
            Self::Spooled(file) => bus.put_blob_open(file).await?.digest,
        })
    }

    /// Its L2 distance to `base`.
    pub fn distance(&self, base: &Self) -> io::Result<f64> {
        match (self, base) {
            (Self::Held(adapter), Self::Held(base)) => Ok(distance(adapter, base)),
            _ => distance_spooled(&mut *self.reader(), &mut *base.reader()),
        }
    }
}

/// A part of a file, read without moving the position that the file itself has.
#[derive(Debug)]
struct Part {
    file: Arc<File>,
    start: u64,
    /// That of the file where there is none.
    end: Option<u64>,
    at: u64,
}

impl Part {
    fn length(&self) -> io::Result<u64> {
        self.end.map_or_else(|| Ok(self.file.metadata()?.len()), Ok).map(|end| end.saturating_sub(self.start))
    }
}

impl Read for Part {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length()?.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = bytes.len().min(left);
        let read = read_at(&self.file, &mut bytes[..wanted], self.start + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length()?.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, bytes, at)
}

/// The adapters of a round that are kept until it closes, one after the other in one file.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    file: Option<Arc<File>>,
    length: u64,
}

impl Heap {
    /// Appends an adapter; what is returned reads it. `room` makes the file.
    pub fn append(
        &mut self,
        adapter: &Adapter,
        room: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<Box<dyn Readable + Send>> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => self.file.insert(Arc::new(room()?)).clone(),
        };
        // What an append that failed has left is written over.
        (&*file).seek(SeekFrom::Start(self.length))?;
        let start = self.length;
        let end = start + io::copy(&mut adapter.reader(), &mut &*file)?;
        self.length = end;
        Ok(Box::new(Part { file, start, end: Some(end), at: 0 }))
    }
}

/// Where an adapter is written.
#[derive(Debug)]
pub(crate) enum Target {
    /// To memory.
    Memory(Vec<u8>),
    /// To a file without a name.
    File(File),
}

impl Target {
    /// What was written.
    pub fn done(self) -> Adapter {
        match self {
            Self::Memory(bytes) => Adapter::Held(bytes.into()),
            Self::File(file) => Adapter::Spooled(Arc::new(file)),
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Memory(memory) => memory.write(bytes),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::File(file) => file.flush(),
        }
    }
}

/// A spool folder that has no place for an adapter.
#[derive(Debug, thiserror::Error)]
#[error("spool folder {}: {source}; make room for an adapter there, or name another folder with --spool", folder.display())]
pub(crate) struct Unusable {
    folder: PathBuf,
    source: io::Error,
}

/// The folder in which files without a name lie.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    folder: PathBuf,
}

impl Spool {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// `$TMPDIR` where it is set, else `/var/tmp`: `/tmp` is often in memory.
    pub fn default_folder() -> PathBuf {
        let large = Path::new("/var/tmp");
        match std::env::var_os("TMPDIR") {
            Some(folder) if !folder.is_empty() => folder.into(),
            _ if large.is_dir() => large.into(),
            _ => std::env::temp_dir(),
        }
    }

    /// An empty file, with room for `size` bytes if the file system can tell.
    pub fn file(&self, size: u64) -> Result<File, Unusable> {
        let made = tempfile::tempfile_in(&self.folder).and_then(|file| reserve(&file, size).map(|()| file));
        made.map_err(|source| self.unusable(source))
    }

    /// An empty file that grows.
    pub fn growing(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.folder)
    }

    /// A file of `size` bytes that `fetch` wrote.
    pub async fn fetched(
        &self,
        size: u64,
        fetch: impl AsyncFnOnce(File) -> Result<Measured, BusError>,
    ) -> Result<Result<(Adapter, Measured), BusError>, Unusable> {
        let file = self.file(size)?;
        let copy = file.try_clone().map_err(|source| self.unusable(source))?;
        match fetch(copy).await {
            Ok(measured) => Ok(Ok((Adapter::Spooled(Arc::new(file)), measured))),
            Err(BusError::File { source, .. }) => Err(self.unusable(source)),
            Err(error) => Ok(Err(error)),
        }
    }

    /// What a file that cannot be read or written means.
    pub fn unusable(&self, source: io::Error) -> Unusable {
        Unusable { folder: self.folder.clone(), source }
    }
}

/// Better now than after fetching half of it.
#[cfg(unix)]
fn reserve(file: &File, size: u64) -> io::Result<()> {
    use rustix::{fs::FallocateFlags, io::Errno};
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(unix))]
fn reserve(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_used_is_named_with_its_cure() {
        let spool = Spool::new("/nonexistent/folder".into());
        let text = spool.file(10).unwrap_err().to_string();
        assert!(text.contains("/nonexistent/folder") && text.contains("--spool"), "{text}");
    }

    #[test]
    fn kept_adapters_are_read_apart() {
        let spool = Spool::new(std::env::temp_dir());
        let mut heap = Heap::default();
        let adapters =
            [&b"first"[..], b"the second", b""].map(|bytes| Adapter::Held(Bytes::from_static(bytes)));
        let mut kept = adapters.map(|adapter| heap.append(&adapter, || spool.growing()).unwrap());
        for (kept, wanted) in kept.iter_mut().zip(["first", "the second", ""]).rev() {
            assert_eq!(kept.seek(SeekFrom::End(0)).unwrap(), wanted.len() as u64);
            for _ in 0..2 {
                kept.rewind().unwrap();
                let mut read = String::new();
                kept.read_to_string(&mut read).unwrap();
                assert_eq!(read, wanted);
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn room_is_asked_for_first() {
        let spool = Spool::new(std::env::temp_dir());
        assert_eq!(spool.file(5000).unwrap().metadata().unwrap().len(), 5000);
        let text = spool.file(1 << 60).unwrap_err().to_string();
        assert!(text.contains("os error"), "{text}");
    }
}
