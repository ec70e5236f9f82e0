//! Fetching blobs.

use std::{fs::File, path::Path, time::Duration};

use async_nats::{
    HeaderMap,
    jetstream::stream::{DirectGetErrorKind, Stream},
};
use bytes::{Buf, Bytes, BytesMut};
use fedpeft_protocol::Digest;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::AsyncWriteExt,
    time::{sleep, timeout},
};

use super::CHUNK;
use super::{
    part::{Part, Prefix},
    pieces::{Mark, Pieces, digest_so_far},
    place::{self, Found, Place, Whole},
};
use crate::{
    Backoff, Bus, BusError, Measured,
    follow::{self, Follow},
};

/// Chunks pulled at once.
const BATCH: usize = 32;
/// A transfer without a chunk for this long, reconnects included, is given up.
pub(super) const STALLED: Duration = Duration::from_secs(60);
/// Of a blob of at most this size chunk after chunk is asked for, which costs the broker less than a consumer.
const SMALL: u64 = 8 * CHUNK as u64;
/// How often a chunk is asked for that is not there.
const LOOKS: u32 = 5;
/// A blob in more pieces than this, and one for every KiB, is meant to keep us busy.
const MANY: u64 = 1024;

impl Bus {
    /// Fetches a blob of at most `limit` bytes.
    pub async fn get_blob(&self, digest: &Digest, limit: u64) -> Result<(Bytes, Measured), BusError> {
        let place = Place::blob(digest);
        let mut download = Box::pin(Download::start(self, &place, limit, Prefix::none())).await?;
        let mut bytes = BytesMut::with_capacity(download.size.min(1 << 20) as usize);
        while let Some(chunk) = download.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes.freeze(), download.measured))
    }

    /// Fetches a blob of exactly `size` bytes into the file `dest`, which appears only once it is whole,
    /// verified and on disk. What came before the process was killed lies beside it, and is not fetched again.
    /// `progress` is told the bytes that are there so far.
    pub async fn get_blob_file(
        &self,
        digest: &Digest,
        size: u64,
        dest: &Path,
        mut progress: impl FnMut(u64),
    ) -> Result<Measured, BusError> {
        let place = Place::blob(digest);
        let mut part = Part::open(dest, digest).map_err(|source| BusError::file(dest, source))?;
        let mut resumed = part.prefix(size).await.map_err(|source| BusError::file(dest, source))?;
        let mut measured = Measured::default();
        loop {
            let was_there = resumed.length > 0;
            let file = part.file().map_err(|source| BusError::file(dest, source))?;
            let fetched =
                Box::pin(self.fetch(&place, size, resumed, file, dest, &mut progress, &mut measured)).await;
            match fetched {
                Ok(()) => break,
                // What lay there may be to blame.
                Err(BusError::Corrupt { .. }) if was_there => {
                    tracing::warn!(%digest, "what was there of a download is damaged, fetching all of it");
                    part.clear().map_err(|source| BusError::file(dest, source))?;
                    resumed = Prefix::none();
                }
                Err(error) => {
                    if !is_worth_keeping(&error) {
                        part.discard();
                    }
                    return Err(error);
                }
            }
        }
        part.become_file(dest).await.map_err(|source| BusError::file(dest, source))?;
        Ok(measured)
    }

    /// Fetches a blob of exactly `size` bytes into `file`, chunk by chunk. With an error the file is of no use.
    pub async fn get_blob_into(&self, digest: &Digest, size: u64, file: File) -> Result<Measured, BusError> {
        self.fetch_into(&Place::blob(digest), size, file).await
    }

    /// Fetches what lies at `place` into an unnamed file.
    pub(super) async fn fetch_into(
        &self,
        place: &Place,
        size: u64,
        file: File,
    ) -> Result<Measured, BusError> {
        let mut measured = Measured::default();
        let name = Path::new("temporary file");
        let progress = &mut |_| {};
        let fetching = self.fetch(place, size, Prefix::none(), file, name, progress, &mut measured);
        Box::pin(fetching).await?;
        Ok(measured)
    }

    #[allow(clippy::too_many_arguments, reason = "the one loop behind two calls")]
    async fn fetch(
        &self,
        place: &Place,
        size: u64,
        prefix: Prefix,
        file: File,
        name: &Path,
        progress: &mut impl FnMut(u64),
        measured: &mut Measured,
    ) -> Result<(), BusError> {
        let mut download = Box::pin(Download::start(self, place, size, prefix)).await?;
        if download.size != size {
            let reason = format!("the store has {} bytes of it, {size} were expected", download.size);
            return Err(BusError::Corrupt { digest: place.digest, reason });
        }
        let mut file = tokio::fs::File::from_std(file);
        let written = async {
            while let Some(chunk) = download.next().await? {
                file.write_all(&chunk).await.map_err(|source| BusError::file(name, source))?;
                progress(download.fetched);
            }
            Ok(())
        }
        .await;
        *measured += download.measured;
        // Also when the download broke off: what came is kept.
        let flushed = file.flush().await;
        written?;
        flushed.map_err(|source| BusError::file(name, source))
    }
}

/// Whether what came can be built upon: a broken connection says nothing against it, but wrong bytes do, and a
/// disk that is full is not to stay so.
fn is_worth_keeping(error: &BusError) -> bool {
    matches!(error, BusError::Timeout { .. } | BusError::Broker { .. })
}

struct Download<'a> {
    place: &'a Place,
    /// Declared size; more is refused while it arrives.
    size: u64,
    fetched: u64,
    /// Bytes of the next chunk that are there already.
    overlap: u64,
    hasher: Sha256,
    chunks: Chunks,
    /// Stored chunks still to come, or to be asked for.
    left: u64,
    measured: Measured,
}

/// Where the chunks come from.
enum Chunks {
    /// None are needed.
    None,
    /// From a consumer.
    Pushed(Box<Follow>),
    /// From the stream, on request.
    Asked { stream: Box<Stream<()>>, subject: String, after: u64 },
}

/// A chunk as it is stored.
struct Chunk {
    subject: String,
    headers: Option<HeaderMap>,
    bytes: Bytes,
}

impl<'a> Download<'a> {
    /// Goes on behind `prefix`.
    async fn start(bus: &Bus, place: &'a Place, limit: u64, prefix: Prefix) -> Result<Self, BusError> {
        let digest = place.digest;
        let head = place::look_up(bus, place).await?;
        let Found::Whole(whole) = head.found else { return Err(BusError::NoBlob { digest }) };
        let size = whole.size;
        if size > limit {
            return Err(BusError::BlobTooLarge { digest, size, limit });
        }
        let Prefix { hasher, length } = prefix;
        let mut download = Self {
            place,
            size,
            fetched: length,
            overlap: 0,
            hasher,
            chunks: Chunks::None,
            left: 0,
            measured: Measured::default(),
        };
        if length < size {
            let (after, most) = (download.seek(bus, &whole, head.floor).await?, MANY + size / 1024);
            // Of the store of uploads nobody may ask for chunks.
            if place.shared && size <= SMALL {
                let stream = place::open(bus, place).await?;
                download.chunks = Chunks::Asked { stream: Box::new(stream), subject: whole.chunks, after };
                download.left = most;
                return Ok(download);
            }
            let from = follow::From::After(after);
            let follow = Follow::start(bus, place.stream(), whole.chunks, from, BATCH).await?;
            download.left = follow.stored();
            download.chunks = Chunks::Pushed(Box::new(follow));
            if download.left > most {
                return Err(download.corrupt(format!("its {size} bytes are in {} pieces", download.left)));
            }
        }
        Ok(download)
    }

    /// The sequence after which the chunk lies that holds the next byte.
    async fn seek(&mut self, bus: &Bus, whole: &Whole, floor: u64) -> Result<u64, BusError> {
        if self.fetched == 0 {
            return Ok(floor);
        }
        let mut pieces = Pieces::list(bus, self.place, &whole.chunks, floor).await?;
        let mut offset = 0u64;
        while let Some(piece) = pieces.next(self.place).await? {
            if piece.mark.is_some_and(|mark| mark.offset != offset) {
                continue;
            }
            let end = offset.saturating_add(piece.length);
            if end > self.fetched {
                self.overlap = self.fetched - offset;
                self.measured += pieces.measured;
                return Ok(piece.sequence - 1);
            }
            offset = end;
        }
        Err(self.corrupt(format!("it should have {} bytes, {offset} are stored", self.size)))
    }

    /// The next chunk; nothing once the blob is complete and its digest right.
    async fn next(&mut self) -> Result<Option<Bytes>, BusError> {
        loop {
            if self.fetched == self.size {
                self.chunks = Chunks::None;
                let got = digest_so_far(&self.hasher);
                if got != self.place.digest {
                    return Err(self.corrupt(format!("its bytes have the digest {got}")));
                }
                return Ok(None);
            }
            let stored = if self.left > 0 { self.stored().await? } else { None };
            let Some(Chunk { subject, headers, bytes }) = stored else {
                let reason = format!("it should have {} bytes, {} came", self.size, self.fetched);
                return Err(self.corrupt(reason));
            };
            self.measured += Measured::of(&subject, headers.as_ref(), bytes.len());
            if let Some(chunk) = self.take(bytes, Mark::of(headers.as_ref()))? {
                return Ok(Some(chunk));
            }
        }
    }

    /// The next chunk that is stored, whatever it is; nothing behind the last.
    async fn stored(&mut self) -> Result<Option<Chunk>, BusError> {
        let (digest, fetched, size) = (self.place.digest, self.fetched, self.size);
        let stalled =
            || BusError::Timeout { what: format!("fetching blob {digest}: {fetched} of {size} bytes came") };
        match &mut self.chunks {
            Chunks::None => Ok(None),
            Chunks::Pushed(follow) => {
                let next = timeout(STALLED, follow.next()).await.map_err(|_| stalled())?;
                self.left = (self.left - 1).min(next.pending);
                let message = next.message.message;
                let (subject, headers) = (message.subject.to_string(), message.headers);
                Ok(Some(Chunk { subject, headers, bytes: message.payload }))
            }
            Chunks::Asked { stream, subject, after } => {
                self.left -= 1;
                let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
                let mut missing = 0;
                let asking = async {
                    loop {
                        match stream.direct_get_next_for_subject(subject.as_str(), Some(*after + 1)).await {
                            Ok(message) => return Some(message),
                            // Another replica than that which knew of the blob may lag behind.
                            Err(error) if error.kind() == DirectGetErrorKind::NotFound => {
                                missing += 1;
                                if missing > LOOKS {
                                    return None;
                                }
                            }
                            // A connection that was lost comes back.
                            Err(error) => tracing::debug!(%error, %digest, "asking for a chunk again"),
                        }
                        sleep(backoff.pause()).await;
                    }
                };
                let Some(message) = timeout(STALLED, asking).await.map_err(|_| stalled())? else {
                    return Ok(None);
                };
                *after = message.sequence;
                let (subject, headers) = (message.subject.to_string(), Some(message.headers));
                Ok(Some(Chunk { subject, headers, bytes: message.payload }))
            }
        }
    }

    /// A chunk's share in what is to come; nothing, if another is to come first: uploads that were broken off leave
    /// chunks behind a gap, and send them again.
    fn take(&mut self, mut chunk: Bytes, mark: Option<Mark>) -> Result<Option<Bytes>, BusError> {
        let start = self.fetched - self.overlap;
        if mark.is_some_and(|mark| mark.offset != start) {
            return Ok(None);
        }
        if (chunk.len() as u64) < self.overlap || start + chunk.len() as u64 > self.size {
            let reason = format!("it should have {} bytes, {} came", self.size, start + chunk.len() as u64);
            return Err(self.corrupt(reason));
        }
        chunk.advance(self.overlap as usize);
        self.overlap = 0;
        self.hasher.update(&chunk);
        self.fetched += chunk.len() as u64;
        match mark {
            Some(mark) if mark.prefix != digest_so_far(&self.hasher) => {
                Err(self.corrupt(format!("its bytes {start} to {} are not those stored", self.fetched)))
            }
            _ => Ok(Some(chunk)),
        }
    }

    fn corrupt(&self, reason: String) -> BusError {
        BusError::Corrupt { digest: self.place.digest, reason }
    }
}
