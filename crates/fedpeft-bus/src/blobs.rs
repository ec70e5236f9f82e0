//! Blobs: bytes named by their SHA-256, in the broker's object stores: `fedpeft-blobs` for what everybody reads,
//! `fedpeft-uploads` for what one client sends and the aggregator reads.
//!
//! The layout is that of every NATS object store, so `nats object ls fedpeft-blobs` shows them. Reading and
//! writing are our own: chunks are pipelined, a transfer goes on where a lost connection or a killed process
//! left it, of several writers of one blob one writes, and nothing is believed before it was hashed.
//!
//! | file | what |
//! | --- | --- |
//! | `place` | subjects of a blob, its metadata, and the claim that makes one writer the only one |
//! | `pieces` | chunks as their headers describe them |
//! | `write` | uploads |
//! | `read` | downloads |
//! | `recent` | a download that many share |
//! | `part` | a download into a file that survives its process |
//! | `uploads` | what clients send |

mod part;
mod pieces;
mod place;
mod read;
mod recent;
mod uploads;
mod write;

use fedpeft_protocol::Digest;

use crate::{Bus, BusError, Measured};
use place::{Found, Place};

pub use recent::RecentBlobs;
pub use uploads::UploadKey;

/// A blob that is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What this call sent to store it; nothing if it was there already.
    pub measured: Measured,
}

/// Chunk size of object stores; with its headers a chunk fits every default `max_payload`.
const CHUNK: usize = 128 * 1024;

impl Bus {
    /// Whether the blob is in the store, whole.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, BusError> {
        Ok(self.blob_size(digest).await?.is_some())
    }

    /// Size of a blob, if it is in the store.
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, BusError> {
        match place::look_up(self, &Place::blob(digest)).await?.found {
            Found::Whole(whole) => Ok(Some(whole.size)),
            Found::Nothing | Found::Claim { .. } => Ok(None),
        }
    }

    /// Removes a blob; that it is not there is fine.
    pub async fn delete_blob(&self, digest: &Digest) -> Result<(), BusError> {
        let place = Place::blob(digest);
        let head = place::look_up(self, &place).await?;
        match &head.found {
            Found::Whole(whole) => place::forget(self, &place, &whole.chunks, head.sequence).await,
            Found::Nothing | Found::Claim { .. } => Ok(()),
        }
    }
}
