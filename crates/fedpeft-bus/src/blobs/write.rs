//! Storing blobs.

use std::{collections::VecDeque, path::Path, time::Duration};

use async_nats::{
    HeaderMap,
    header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_ROLLUP},
    jetstream::{
        context::{PublishAckFuture, PublishError, PublishErrorKind},
        stream::Stream,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE};
use bytes::Bytes;
use fedpeft_protocol::{Digest, subject};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{CHUNK, Stored, chunk_subject, meta_sequence, meta_subject, stream_name};
use crate::{Bus, BusError, Measured};

/// Chunks on their way at once: 2 MiB keeps a fast link busy and no broker's buffers full.
const WINDOW: usize = 16;
/// An upload that a lost connection broke begins anew, so often: chunks may be missing in its middle.
const RETRIES: usize = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

impl Bus {
    /// Stores `bytes` under their digest, unless they are stored already.
    pub async fn put_blob(&self, bytes: Bytes) -> Result<Stored, BusError> {
        let digest = Digest::of(&bytes);
        self.put(digest, bytes.len() as u64, |_| {}, &Source::Memory(bytes)).await
    }

    /// Stores a file under its digest, unless it is stored already. `progress` is told the bytes of the file
    /// that are safe so far.
    pub async fn put_blob_file(&self, path: &Path, progress: impl FnMut(u64)) -> Result<Stored, BusError> {
        let (digest, size) = digest_of_file(path).await.map_err(|source| BusError::file(path, source))?;
        self.put(digest, size, progress, &Source::File(path)).await
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
        self.put(digest, size, progress, &Source::File(path)).await
    }

    async fn put(
        &self,
        digest: Digest,
        size: u64,
        mut progress: impl FnMut(u64),
        source: &Source<'_>,
    ) -> Result<Stored, BusError> {
        let (mut measured, mut broken) = (Measured::default(), Vec::new());
        let mut pause = FIRST_PAUSE;
        let result = loop {
            let nuid = new_nuid(self);
            let attempt = self.attempt(digest, size, &nuid, source, &mut progress, &mut measured).await;
            match attempt {
                Ok(false) => break Ok(Stored { digest, size, measured }),
                Ok(true) => {}
                Err(error @ (BusError::Timeout { .. } | BusError::Broker { .. }))
                    if broken.len() < RETRIES =>
                {
                    tracing::warn!(%error, %digest, "blob upload broken, beginning anew");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => {
                    broken.push(nuid);
                    break Err(error);
                }
            }
            broken.push(nuid);
        };
        self.take_back(&digest, &broken).await;
        result
    }

    /// One upload. Says whether its chunks are in the way now: another upload of the blob was faster.
    async fn attempt(
        &self,
        digest: Digest,
        size: u64,
        nuid: &str,
        source: &Source<'_>,
        progress: &mut impl FnMut(u64),
        measured: &mut Measured,
    ) -> Result<bool, BusError> {
        if self.blob_info(&digest).await?.is_some() {
            progress(size);
            return Ok(false);
        }
        let upload = Upload { bus: self, digest, nuid, stream: self.blob_stream().await? };
        upload.run(source.open().await?, size, progress, measured).await
    }

    /// Frees the chunks of broken uploads, save one that turns out to have been committed after all.
    async fn take_back(&self, digest: &Digest, broken: &[String]) {
        if broken.is_empty() {
            return;
        }
        let (Ok(info), Ok(stream)) = (self.blob_info(digest).await, self.blob_stream().await) else {
            // Not knowing is no licence to delete: orphaned chunks cost space, lost ones cost a blob.
            tracing::warn!(%digest, "chunks of a broken upload stay behind in the blob store");
            return;
        };
        let committed = info.map(|info| info.nuid);
        for nuid in broken.iter().filter(|nuid| committed.as_ref() != Some(nuid)) {
            if let Err(error) = stream.purge().filter(chunk_subject(nuid)).await {
                tracing::warn!(%error, %digest, "chunks of a broken upload stay behind in the blob store");
            }
        }
    }

    pub(super) async fn blob_stream(&self) -> Result<Stream, BusError> {
        let stream = self.js.get_stream(stream_name()).await;
        stream.map_err(|error| BusError::broker("opening the blob store", error))
    }
}

/// Where the bytes of a blob come from; an upload that begins anew reads them again.
enum Source<'a> {
    Memory(Bytes),
    File(&'a Path),
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;

impl Source<'_> {
    async fn open(&self) -> Result<Reader, BusError> {
        match self {
            Self::Memory(bytes) => Ok(Box::new(std::io::Cursor::new(bytes.clone()))),
            Self::File(path) => match tokio::fs::File::open(path).await {
                Ok(file) => Ok(Box::new(file)),
                Err(source) => Err(BusError::file(path, source)),
            },
        }
    }
}

/// Object stores name the chunks of one upload by a unique token; the client's inbox ends in one.
fn new_nuid(bus: &Bus) -> String {
    let inbox = bus.client.new_inbox();
    inbox.rsplit('.').next().unwrap_or_default().to_owned()
}

async fn digest_of_file(path: &Path) -> std::io::Result<(Digest, u64)> {
    let path = path.to_owned();
    let hashing = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        Ok((Digest::of_reader(file)?, size))
    });
    hashing.await.map_err(std::io::Error::other)?
}

struct Upload<'a> {
    bus: &'a Bus,
    digest: Digest,
    nuid: &'a str,
    stream: Stream,
}

impl Upload<'_> {
    async fn run(
        &self,
        mut reader: Reader,
        size: u64,
        progress: &mut impl FnMut(u64),
        measured: &mut Measured,
    ) -> Result<bool, BusError> {
        let meta_before = meta_sequence(&self.stream, &self.digest).await?;
        let chunk_size = CHUNK.min(self.bus.max_payload());
        let subject = chunk_subject(self.nuid);
        let mut hasher = Sha256::new();
        let mut in_flight: VecDeque<(PublishAckFuture, usize)> = VecDeque::with_capacity(WINDOW);
        let (mut sent, mut safe, mut chunks) = (0u64, 0u64, 0u64);
        loop {
            let chunk = read_chunk(&mut reader, chunk_size).await.map_err(|error| {
                BusError::broker(format!("reading blob {} to store it", self.digest), error)
            })?;
            let last = chunk.is_empty();
            while in_flight.len() >= WINDOW || (last && !in_flight.is_empty()) {
                let Some((ack, length)) = in_flight.pop_front() else { break };
                ack.await.map_err(|error| self.failed(&error))?;
                safe += length as u64;
                progress(safe);
            }
            if last {
                break;
            }
            hasher.update(&chunk);
            (sent, chunks) = (sent + chunk.len() as u64, chunks + 1);
            *measured += Measured::of(&subject, None, chunk.len());
            let length = chunk.len();
            let ack = self.bus.js.publish(subject.clone(), chunk).await;
            in_flight.push_back((ack.map_err(|error| self.failed(&error))?, length));
        }
        let got = Digest::from_bytes(hasher.finalize().into());
        if got != self.digest || sent != size {
            let reason = format!("the {sent} bytes to store have the digest {got}");
            return Err(BusError::Corrupt { digest: self.digest, reason });
        }
        self.commit(size, chunks, meta_before, measured).await
    }

    /// Writes the metadata, which makes the blob visible. Of two concurrent uploads of one blob one wins;
    /// says whether this is the other.
    async fn commit(
        &self,
        size: u64,
        chunks: u64,
        meta_before: u64,
        measured: &mut Measured,
    ) -> Result<bool, BusError> {
        let meta = serde_json::json!({
            "name": self.digest.to_string(),
            "bucket": subject::BLOB_BUCKET,
            "nuid": self.nuid,
            "size": size,
            "chunks": chunks,
            "digest": format!("SHA-256={}", URL_SAFE.encode(self.digest.as_bytes())),
            "options": {"max_chunk_size": CHUNK},
        });
        let body = Bytes::from(meta.to_string());
        let mut headers = HeaderMap::new();
        headers.insert(NATS_ROLLUP, "sub");
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, meta_before.to_string());
        let subject = meta_subject(&self.digest);
        *measured += Measured::of(&subject, Some(&headers), body.len());
        let acknowledged = match self.bus.js.publish_with_headers(subject, headers, body).await {
            Ok(ack) => ack.await.map(|_| ()),
            Err(error) => Err(error),
        };
        match acknowledged {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(true),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &PublishError) -> BusError {
        let what = format!("storing blob {}", self.digest);
        match error.kind() {
            PublishErrorKind::TimedOut => BusError::Timeout { what },
            _ => BusError::broker(what, error),
        }
    }
}

/// Up to `size` bytes; fewer only at the end.
async fn read_chunk(reader: &mut Reader, size: usize) -> std::io::Result<Bytes> {
    let mut chunk = Vec::with_capacity(size);
    reader.take(size as u64).read_to_end(&mut chunk).await?;
    Ok(chunk.into())
}
