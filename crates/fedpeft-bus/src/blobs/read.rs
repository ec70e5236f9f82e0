//! Fetching blobs.

use std::{path::Path, time::Duration};

use bytes::{Bytes, BytesMut};
use fedpeft_protocol::Digest;
use sha2::{Digest as _, Sha256};
use tokio::{fs::File, io::AsyncWriteExt};

use super::{chunk_subject, stream_name};
use crate::{
    Bus, BusError, Measured,
    follow::{self, Follow},
};

/// Chunks pulled at once.
const BATCH: usize = 64;
/// A download without a chunk for this long, reconnects included, is given up.
const STALLED: Duration = Duration::from_secs(60);

impl Bus {
    /// Fetches a blob of at most `limit` bytes.
    pub async fn get_blob(&self, digest: &Digest, limit: u64) -> Result<(Bytes, Measured), BusError> {
        let mut download = Download::start(self, digest, limit).await?;
        let mut bytes = BytesMut::with_capacity(download.size.min(1 << 20) as usize);
        while let Some(chunk) = download.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes.freeze(), download.measured))
    }

    /// Fetches a blob of exactly `size` bytes into the file `dest`, which appears only once it is whole,
    /// verified and on disk. `progress` is told the bytes fetched so far.
    pub async fn get_blob_file(
        &self,
        digest: &Digest,
        size: u64,
        dest: &Path,
        mut progress: impl FnMut(u64),
    ) -> Result<Measured, BusError> {
        let mut download = Download::start(self, digest, size).await?;
        if download.size != size {
            let reason = format!("the store has {} bytes of it, {size} were expected", download.size);
            return Err(BusError::Corrupt { digest: *digest, reason });
        }
        let failed = |source| BusError::file(dest, source);
        let folder = dest.parent().unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new().prefix(".part-").tempfile_in(folder).map_err(failed)?;
        let mut file = File::from_std(temporary.reopen().map_err(failed)?);
        while let Some(chunk) = download.next().await? {
            file.write_all(&chunk).await.map_err(failed)?;
            progress(download.fetched);
        }
        file.flush().await.map_err(failed)?;
        file.sync_all().await.map_err(failed)?;
        temporary.persist(dest).map_err(|error| failed(error.error))?;
        Ok(download.measured)
    }
}

struct Download {
    digest: Digest,
    /// Declared size; more is refused while it arrives.
    size: u64,
    fetched: u64,
    hasher: Sha256,
    follow: Option<Follow>,
    measured: Measured,
}

impl Download {
    async fn start(bus: &Bus, digest: &Digest, limit: u64) -> Result<Self, BusError> {
        let info = bus.blob_info(digest).await?.ok_or(BusError::NoBlob { digest: *digest })?;
        let size = info.size as u64;
        if size > limit {
            return Err(BusError::BlobTooLarge { digest: *digest, size, limit });
        }
        let follow = if size == 0 {
            None
        } else {
            let filter = chunk_subject(&info.nuid);
            Some(Follow::start(bus, stream_name(), filter, follow::From::First, BATCH).await?)
        };
        let (hasher, measured) = (Sha256::new(), Measured::default());
        Ok(Self { digest: *digest, size, fetched: 0, hasher, follow, measured })
    }

    /// The next chunk; nothing once the blob is complete and its digest right.
    async fn next(&mut self) -> Result<Option<Bytes>, BusError> {
        let digest = self.digest;
        if self.fetched == self.size {
            self.follow = None;
            let got = Digest::from_bytes(self.hasher.clone().finalize().into());
            if got != digest {
                let reason = format!("its bytes have the digest {got}");
                return Err(BusError::Corrupt { digest, reason });
            }
            return Ok(None);
        }
        let Some(follow) = &mut self.follow else { return Ok(None) };
        let Ok(next) = tokio::time::timeout(STALLED, follow.next()).await else {
            let what = format!("fetching blob {digest}: {} of {} bytes came", self.fetched, self.size);
            return Err(BusError::Timeout { what });
        };
        let message = next.message.message;
        self.measured += Measured::of(&message.subject, message.headers.as_ref(), message.payload.len());
        self.hasher.update(&message.payload);
        self.fetched += message.payload.len() as u64;
        if self.fetched > self.size || (next.pending == 0 && self.fetched < self.size) {
            let reason = format!("it should have {} bytes, {} came", self.size, self.fetched);
            return Err(BusError::Corrupt { digest, reason });
        }
        Ok(Some(message.payload))
    }
}
