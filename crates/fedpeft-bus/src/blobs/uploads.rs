//! What clients send: updates that do not fit a message. They lie in a store of their own, under subjects that
//! carry the client's name, and go when their round is committed.

use std::{fs::File, path::Path};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use fedpeft_protocol::{ClientId, Digest, Round, RunId, subject};

use super::{
    Stored,
    place::Place,
    write::{Source, digest_of_open},
};
use crate::{Bus, BusError, Measured};

/// Whose upload it is, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadKey<'a> {
    /// Run of the task.
    pub run: &'a RunId,
    /// Round of the task.
    pub round: Round,
    /// Client that answers it.
    pub client: &'a ClientId,
}

impl UploadKey<'_> {
    /// Last two tokens of the subjects of an upload: the client, and what the rest comes to.
    pub(super) fn token(&self, digest: &Digest) -> String {
        let name = Digest::of(format!("{}/{}/{digest}", self.run, self.round));
        format!("{}.{}", self.client, URL_SAFE_NO_PAD.encode(name.as_bytes()))
    }
}

impl Bus {
    /// Stores what a client computed for a round, unless it is stored already. An upload that was broken off, by
    /// whatever, goes on where it stopped.
    pub async fn put_upload(&self, key: UploadKey<'_>, bytes: Bytes) -> Result<Stored, BusError> {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.put(&Place::upload(key, &digest), size, |_| {}, Source::Memory(bytes)).await
    }

    /// [`Self::put_upload`], of an open file from its first byte on. Nobody else may read it meanwhile.
    pub async fn put_upload_open(&self, key: UploadKey<'_>, file: &File) -> Result<Stored, BusError> {
        let name = Path::new("temporary file");
        let copy = || file.try_clone().map_err(|source| BusError::file(name, source));
        let (digest, size) = digest_of_open(copy()?).await.map_err(|source| BusError::file(name, source))?;
        self.put(&Place::upload(key, &digest), size, |_| {}, Source::Open(copy()?)).await
    }

    /// Fetches an upload of exactly `size` bytes into `file`, chunk by chunk. What is missing, has another size or
    /// other bytes is [`BusError::NoBlob`], [`BusError::BlobTooLarge`] or [`BusError::Corrupt`]; the file is then
    /// of no use.
    pub async fn get_upload(
        &self,
        key: UploadKey<'_>,
        digest: &Digest,
        size: u64,
        file: File,
    ) -> Result<Measured, BusError> {
        self.fetch_into(&Place::upload(key, digest), size, file).await
    }

    /// Forgets an upload: its round is committed, or it was refused. That it is not there is fine.
    pub async fn purge_upload(&self, key: UploadKey<'_>, digest: &Digest) -> Result<(), BusError> {
        // Chunks and metadata in one step.
        let filter = format!("$O.{}.*.{}", subject::UPLOAD_BUCKET, key.token(digest));
        self.purge_whole(&format!("OBJ_{}", subject::UPLOAD_BUCKET), filter).await
    }
}
