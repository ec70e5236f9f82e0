//! Storing blobs.
//!
//! An upload claims its place, finds out what is stored there already, sends the rest, and commits. A lost
//! connection, a killed process or another writer only means that the next attempt begins with the same steps:
//! chunks that are stored are compared by their headers with the bytes at hand, and not sent again.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Seek},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{
    header::NATS_ROLLUP,
    jetstream::context::{PublishAckFuture, PublishErrorKind},
};
use bytes::Bytes;
use fedpeft_protocol::{Digest, subject::CHUNK_HEADER};
use futures::TryStreamExt;
use sha2::{Digest as _, Sha256};

use super::{
    CHUNK, Stored,
    pieces::{Mark, Pieces, digest_so_far},
    place::{self, Found, Head, Place, failure, refusal},
    read::STALLED,
};
use crate::{Bus, BusError, Measured};

/// Chunks on their way at once: 2 MiB keeps a fast link busy and no broker's buffers full. So much is sent twice
/// when a connection breaks.
const WINDOW: usize = 16;
/// Room for the headers of a chunk.
const HEADERS: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A writer without a chunk for this long is taken to be dead. If it is not, the broker refuses its next chunk.
const RIVAL_DEAD: Duration = Duration::from_secs(10);
const RIVAL_POLL: Duration = Duration::from_millis(500);

impl Bus {
    /// Stores `bytes` under their digest, unless they are stored already.
    pub async fn put_blob(&self, bytes: Bytes) -> Result<Stored, BusError> {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.put(&Place::blob(&digest), size, |_| {}, Source::Memory(bytes)).await
    }

    /// Stores a file under its digest, unless it is stored already. `progress` is told the bytes of the file
    /// that are safe so far.
    pub async fn put_blob_file(&self, path: &Path, progress: impl FnMut(u64)) -> Result<Stored, BusError> {
        let (digest, size) = digest_of_file(path).await.map_err(|source| BusError::file(path, source))?;
        self.put_blob_file_as(digest, size, path, progress).await
    }

    /// Stores a file whose digest and size are known, unless they are stored already; what turns out to have
    /// other bytes is [`BusError::Corrupt`] and not stored.
    pub async fn put_blob_file_as(
        &self,
        digest: Digest,
        size: u64,
        path: &Path,
        progress: impl FnMut(u64),
    ) -> Result<Stored, BusError> {
        self.put(&Place::blob(&digest), size, progress, Source::File(path)).await
    }

    /// Stores an open file, from its first byte on, under its digest, unless it is stored already. Nobody else may
    /// read it meanwhile.
    pub async fn put_blob_open(&self, file: &File) -> Result<Stored, BusError> {
        let name = Path::new("temporary file");
        let copy = || file.try_clone().map_err(|source| BusError::file(name, source));
        let (digest, size) = digest_of_open(copy()?).await.map_err(|source| BusError::file(name, source))?;
        self.put(&Place::blob(&digest), size, |_| {}, Source::Open(copy()?)).await
    }

    pub(super) async fn put(
        &self,
        place: &Place,
        size: u64,
        progress: impl FnMut(u64),
        source: Source<'_>,
    ) -> Result<Stored, BusError> {
        let owner = self.client.new_inbox();
        let (rival, measured) = (None, Measured::default());
        let (safe, since) = (0, Instant::now());
        let mut upload =
            Upload { bus: self, place, size, source, progress, owner, safe, since, rival, measured };
        let mut pause = FIRST_PAUSE;
        loop {
            let safe = upload.safe;
            match Box::pin(upload.attempt_while_connected()).await {
                Ok(Step::Stored) => {
                    return Ok(Stored { digest: place.digest, size, measured: upload.measured });
                }
                Ok(Step::Overtaken) => {}
                Ok(Step::Wait) => {
                    upload.since = Instant::now();
                    tokio::time::sleep(RIVAL_POLL).await;
                }
                Err(error @ (BusError::Timeout { .. } | BusError::Broker { .. }))
                    if upload.since.elapsed() < STALLED =>
                {
                    tracing::warn!(%error, digest = %place.digest, safe = upload.safe, "blob upload broken, going on");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
            if upload.safe > safe {
                pause = FIRST_PAUSE;
            }
        }
    }
}

/// Where the bytes of a blob come from; every attempt reads them from the first.
pub(super) enum Source<'a> {
    Memory(Bytes),
    File(&'a Path),
    Open(File),
}

impl Source<'_> {
    fn open(&self) -> io::Result<Reader> {
        match self {
            Self::Memory(bytes) => Ok(Reader::Memory(bytes.clone())),
            Self::File(path) => Ok(Reader::File(Arc::new(File::open(path)?))),
            Self::Open(file) => Ok(Reader::File(Arc::new(file.try_clone()?))),
        }
    }

    fn failed(&self, source: io::Error) -> BusError {
        match self {
            Self::File(path) => BusError::file(path, source),
            Self::Memory(_) | Self::Open(_) => BusError::file(Path::new("temporary file"), source),
        }
    }
}

/// A source that is being read. Files are read by offset: an attempt that was broken off may still be reading.
enum Reader {
    Memory(Bytes),
    File(Arc<File>),
}

impl Reader {
    /// Up to `size` bytes from `offset` on; fewer only at the end.
    async fn read(&self, offset: u64, size: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => {
                let start = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
                Ok(bytes.slice(start..bytes.len().min(start.saturating_add(size))))
            }
            Self::File(file) => {
                let file = file.clone();
                let reading = tokio::task::spawn_blocking(move || {
                    let (mut chunk, mut filled) = (vec![0; size], 0);
                    while filled < size {
                        match read_at(&file, &mut chunk[filled..], offset + filled as u64) {
                            Ok(0) => break,
                            Ok(read) => filled += read,
                            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                            Err(error) => return Err(error),
                        }
                    }
                    chunk.truncate(filled);
                    Ok(chunk.into())
                });
                reading.await.map_err(io::Error::other)?
            }
        }
    }
}

#[cfg(unix)]
fn read_at(file: &File, chunk: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, chunk, offset)
}

#[cfg(windows)]
fn read_at(file: &File, chunk: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, chunk, offset)
}

async fn digest_of_file(path: &Path) -> io::Result<(Digest, u64)> {
    digest_of_open(tokio::fs::File::open(path).await?.into_std().await).await
}

pub(super) async fn digest_of_open(mut file: File) -> io::Result<(Digest, u64)> {
    let hashing = tokio::task::spawn_blocking(move || {
        file.rewind()?;
        let size = file.metadata()?.len();
        Ok((Digest::of_reader(file)?, size))
    });
    hashing.await.map_err(io::Error::other)?
}

/// What came of an attempt.
enum Step {
    /// The blob is there, by us or by another writer.
    Stored,
    /// Another writer claimed the blob.
    Overtaken,
    /// Another writer is at it.
    Wait,
}

/// The writer before us, when something of it was last seen.
struct Rival {
    claim: u64,
    chunks: usize,
    since: Instant,
}

struct Upload<'a, P> {
    bus: &'a Bus,
    place: &'a Place,
    size: u64,
    source: Source<'a>,
    progress: P,
    owner: String,
    /// Bytes that the broker has, as far as we know.
    safe: u64,
    /// When they last grew more.
    since: Instant,
    rival: Option<Rival>,
    measured: Measured,
}

/// How far an upload is: the source is read and hashed up to `offset`, and the broker has it.
struct Position {
    reader: Reader,
    hasher: Sha256,
    offset: u64,
    chunks: u64,
    /// The first chunk that is sent replaces whatever is stored.
    anew: bool,
}

impl<P: FnMut(u64)> Upload<'_, P> {
    /// What was in flight over a connection that was lost is unknown, so a new one ends the attempt at once.
    async fn attempt_while_connected(&mut self) -> Result<Step, BusError> {
        let mut connections = self.bus.connections.clone();
        connections.mark_unchanged();
        let what = format!("storing blob {}", self.place.digest);
        tokio::select! {
            step = Box::pin(self.attempt()) => step,
            _ = connections.changed() => Err(BusError::broker(what, "the connection was lost")),
        }
    }

    async fn attempt(&mut self) -> Result<Step, BusError> {
        let mut head = place::look_up(self.bus, self.place).await?;
        match &head.found {
            Found::Whole(whole) if whole.size == self.size => {
                self.report(self.size);
                return Ok(Step::Stored);
            }
            // Whatever it is, it is not the blob.
            Found::Whole(_) => head.floor = head.sequence,
            Found::Claim { owner } if self.place.shared && *owner != self.owner => {
                if self.is_alive(head.sequence).await? {
                    return Ok(Step::Wait);
                }
            }
            Found::Claim { .. } | Found::Nothing => {}
        }
        let claimed = place::claim(self.bus, self.place, &head, &self.owner, &mut self.measured).await?;
        let Some(mut claim) = claimed else { return Ok(Step::Overtaken) };
        self.rival = None;
        let position = Box::pin(self.resume(&head)).await?;
        if position.anew && !self.place.shared {
            // No rollup removes what is stored of an upload: it is left behind.
            head = Head { sequence: claim, floor: claim, found: Found::Nothing };
            let claimed = place::claim(self.bus, self.place, &head, &self.owner, &mut self.measured).await?;
            let Some(again) = claimed else { return Ok(Step::Overtaken) };
            claim = again;
        }
        Box::pin(self.send(position, claim, head.floor)).await
    }

    /// Whether the writer with this claim has done anything of late.
    async fn is_alive(&mut self, claim: u64) -> Result<bool, BusError> {
        let stream = place::open(self.bus, self.place).await?;
        let mut counts = stream
            .info_with_subjects(&self.place.chunks)
            .await
            .map_err(|error| failure(self.place, error))?;
        let count = counts.try_next().await.map_err(|error| failure(self.place, error))?;
        let chunks = count.map_or(0, |(_, count)| count);
        match &self.rival {
            Some(rival) if (rival.claim, rival.chunks) == (claim, chunks) => {
                Ok(rival.since.elapsed() < RIVAL_DEAD)
            }
            _ => {
                if self.rival.is_none() {
                    tracing::info!(digest = %self.place.digest, "the blob is being stored by another program, waiting");
                }
                self.rival = Some(Rival { claim, chunks, since: Instant::now() });
                Ok(true)
            }
        }
    }

    /// Reads the source along with the chunks that are stored, as long as they agree.
    async fn resume(&mut self, head: &Head) -> Result<Position, BusError> {
        let begin = |anew| {
            let reader = self.source.open().map_err(|source| self.source.failed(source))?;
            Ok::<_, BusError>(Position { reader, hasher: Sha256::new(), offset: 0, chunks: 0, anew })
        };
        let mut at = begin(false)?;
        if head.sequence == 0 {
            return Ok(at);
        }
        let mut strays = Vec::new();
        let mut pieces = Pieces::list(self.bus, self.place, &self.place.chunks, head.floor).await?;
        while let Some(piece) = pieces.next(self.place).await? {
            let Some(mark) = piece.mark.filter(|mark| mark.offset == at.offset) else {
                strays.push(piece.sequence);
                continue;
            };
            // No chunk is larger than a message.
            let length = piece.length.min(self.bus.max_payload() as u64) as usize;
            let chunk = self.read_chunk(&at, length).await?;
            at.hasher.update(&chunk);
            (at.offset, at.chunks) = (at.offset + chunk.len() as u64, at.chunks + 1);
            if chunk.len() as u64 != piece.length || digest_so_far(&at.hasher) != mark.prefix {
                tracing::warn!(digest = %self.place.digest, "other bytes are stored of the blob, beginning anew");
                return begin(true);
            }
        }
        if at.offset == 0 {
            at.anew = true;
            return Ok(at);
        }
        self.remove(&strays).await;
        tracing::info!(digest = %self.place.digest, safe = at.offset, size = self.size, "going on with an upload");
        self.report(at.offset);
        Ok(at)
    }

    /// Removes chunks behind a gap. Ours skip them when they read; other programs do not know how to.
    async fn remove(&self, strays: &[u64]) {
        // A client may not, and its uploads are read by ours only.
        if !self.place.shared {
            return;
        }
        let Ok(stream) = place::open(self.bus, self.place).await else { return };
        for sequence in strays {
            if let Err(error) = stream.delete_message(*sequence).await {
                tracing::debug!(%error, digest = %self.place.digest, "chunk behind a gap not removed");
            }
        }
    }

    async fn send(&mut self, mut at: Position, claim: u64, floor: u64) -> Result<Step, BusError> {
        let chunk_size = CHUNK.min(self.bus.max_payload().saturating_sub(HEADERS)).max(HEADERS);
        let mut in_flight: VecDeque<(PublishAckFuture, u64)> = VecDeque::with_capacity(WINDOW);
        loop {
            let chunk = self.read_chunk(&at, chunk_size).await?;
            let last = chunk.is_empty();
            while in_flight.len() >= WINDOW || (last && !in_flight.is_empty()) {
                let Some((ack, end)) = in_flight.pop_front() else { break };
                match ack.await {
                    Ok(_) => self.report(end),
                    Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
                        return Ok(Step::Overtaken);
                    }
                    Err(error) => return Err(refusal(self.place, &error)),
                }
            }
            if last {
                break;
            }
            at.hasher.update(&chunk);
            let mark = Mark { offset: at.offset, prefix: digest_so_far(&at.hasher) };
            (at.offset, at.chunks) = (at.offset + chunk.len() as u64, at.chunks + 1);
            let mut headers = self.place.fence(claim);
            headers.insert(CHUNK_HEADER, mark.header());
            if std::mem::take(&mut at.anew) && self.place.shared {
                headers.insert(NATS_ROLLUP, "sub");
            }
            self.measured += Measured::of(&self.place.chunks, Some(&headers), chunk.len());
            let sending = self.bus.js.publish_with_headers(self.place.chunks.clone(), headers, chunk);
            let ack = sending.await.map_err(|error| refusal(self.place, &error))?;
            in_flight.push_back((ack, at.offset));
        }
        let got = digest_so_far(&at.hasher);
        if got != self.place.digest || at.offset != self.size {
            if self.place.shared {
                place::forget(self.bus, self.place, &self.place.chunks, claim).await?;
            }
            let reason = format!("the {} bytes to store have the digest {got}", at.offset);
            return Err(BusError::Corrupt { digest: self.place.digest, reason });
        }
        let whole = (self.size, at.chunks);
        let committed =
            place::commit(self.bus, self.place, (claim, floor), whole, &mut self.measured).await?;
        Ok(if committed { Step::Stored } else { Step::Overtaken })
    }

    /// The next chunk.
    async fn read_chunk(&self, at: &Position, size: usize) -> Result<Bytes, BusError> {
        at.reader.read(at.offset, size).await.map_err(|source| self.source.failed(source))
    }

    fn report(&mut self, safe: u64) {
        if safe > self.safe {
            (self.safe, self.since) = (safe, Instant::now());
            (self.progress)(safe);
        }
    }
}
