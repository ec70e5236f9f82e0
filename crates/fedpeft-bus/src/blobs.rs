//! Blobs: bytes named by their SHA-256, in the broker's object store.
//!
//! The layout is that of every NATS object store, so `nats object ls fedpeft-blobs` shows them; reading and
//! writing are our own, for three reasons: chunks are pipelined, a lost connection resumes a download where
//! it stopped, and nothing is believed before it was hashed.

mod read;
mod write;

use async_nats::jetstream::{
    object_store::{InfoErrorKind, ObjectInfo, ObjectStore},
    stream::{DirectGetErrorKind, Stream},
};
use base64::{Engine, engine::general_purpose::URL_SAFE};
use fedpeft_protocol::{Digest, subject};

use crate::{Bus, BusError, Measured};

/// A blob that is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What it took to store it; nothing if it was there already.
    pub measured: Measured,
}

/// Chunk size of object stores; with its headers a chunk fits every default `max_payload`.
const CHUNK: usize = 128 * 1024;

impl Bus {
    /// Whether the blob is in the store, whole.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, BusError> {
        Ok(self.blob_info(digest).await?.is_some())
    }

    /// Size of a blob, if it is in the store.
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, BusError> {
        Ok(self.blob_info(digest).await?.map(|info| info.size as u64))
    }

    /// Removes a blob; that it is not there is fine.
    pub async fn delete_blob(&self, digest: &Digest) -> Result<(), BusError> {
        if self.blob_info(digest).await?.is_none() {
            return Ok(());
        }
        let what = format!("deleting blob {digest}");
        let store = self.blob_store().await?;
        store.delete(digest.to_string()).await.map_err(|error| BusError::broker(what, error))
    }

    async fn blob_store(&self) -> Result<ObjectStore, BusError> {
        let opening = self.js.get_object_store(subject::BLOB_BUCKET).await;
        opening.map_err(|error| BusError::broker("opening the blob store", error))
    }

    /// Metadata is written after the last chunk, so a blob with metadata is whole.
    async fn blob_info(&self, digest: &Digest) -> Result<Option<ObjectInfo>, BusError> {
        match self.blob_store().await?.info(digest.to_string()).await {
            Ok(info) if info.deleted => Ok(None),
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == InfoErrorKind::TimedOut => {
                Err(BusError::Timeout { what: format!("looking up blob {digest}") })
            }
            Err(error) => Err(BusError::broker(format!("looking up blob {digest}"), error)),
        }
    }
}

fn stream_name() -> String {
    format!("OBJ_{}", subject::BLOB_BUCKET)
}

fn chunk_subject(nuid: &str) -> String {
    format!("$O.{}.C.{nuid}", subject::BLOB_BUCKET)
}

fn meta_subject(digest: &Digest) -> String {
    format!("$O.{}.M.{}", subject::BLOB_BUCKET, URL_SAFE.encode(digest.to_string()))
}

/// Sequence of the last metadata message of a blob, deleted or not; 0 if there never was one.
async fn meta_sequence(stream: &Stream, digest: &Digest) -> Result<u64, BusError> {
    match stream.direct_get_last_for_subject(meta_subject(digest)).await {
        Ok(message) => Ok(message.sequence),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(0),
        Err(error) => Err(BusError::broker(format!("looking up blob {digest}"), error)),
    }
}
