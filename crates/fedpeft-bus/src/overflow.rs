//! Records that do not fit a message, as the report of a round of ten thousand clients: the record's place then names
//! a blob that holds it.
//!
//! The blob is stored first, so that who finds its name finds it. What replaces such a record forgets its blob; a
//! process that dies in between leaves one that nobody reads, which costs space and nothing else.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{BufMut, Bytes, BytesMut};
use fedpeft_protocol::Digest;

use crate::{Bus, BusError, Revision};

/// No MessagePack begins with this byte.
const MARK: u8 = 0xc1;
/// Mark, digest, size.
const NAME: usize = 1 + 32 + 8;
/// A record takes at most this share of the largest message: whoever lists records gets several in a reply.
const SHARE: usize = 4;
/// Largest record, wherever it lies.
const LARGEST: u64 = 64 << 20;

/// A blob that holds a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    digest: Digest,
    size: u64,
}

impl Name {
    fn read(stored: &[u8]) -> Option<Self> {
        let rest = stored.strip_prefix(&[MARK])?;
        let (digest, size) = rest.split_first_chunk::<32>()?;
        Some(Self { digest: Digest::from_bytes(*digest), size: u64::from_le_bytes(size.try_into().ok()?) })
    }

    fn write(self) -> Bytes {
        let mut stored = BytesMut::with_capacity(NAME);
        stored.put_u8(MARK);
        stored.put_slice(self.digest.as_bytes());
        stored.put_u64_le(self.size);
        stored.freeze()
    }
}

/// Which records lie in which blobs, as far as they were read or written one by one here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overflow(Arc<Mutex<BTreeMap<String, (Revision, Digest)>>>);

impl Overflow {
    /// What is stored for a record: itself while it is small.
    pub async fn packed(&self, bus: &Bus, what: &str, key: &str, body: Bytes) -> Result<Bytes, BusError> {
        if body.len() <= bus.max_payload() / SHARE {
            return Ok(body);
        }
        let size = body.len() + key.len() + 1;
        if size as u64 > LARGEST {
            return Err(BusError::MessageTooLarge { what: what.into(), size, limit: LARGEST as usize });
        }
        // With its key, so that no other record has the same blob.
        let mut blob = BytesMut::with_capacity(size);
        blob.put_slice(key.as_bytes());
        blob.put_u8(b'\n');
        blob.put_slice(&body);
        let stored = bus.put_blob(blob.freeze()).await?;
        Ok(Name { digest: stored.digest, size: stored.size }.write())
    }

    /// The record that `stored` is or names.
    pub async fn unpacked(&self, bus: &Bus, key: &str, stored: Bytes) -> Result<Bytes, BusError> {
        let Some(name) = Name::read(&stored) else { return Ok(stored) };
        let (mut blob, _) = bus.get_blob(&name.digest, name.size.min(LARGEST)).await?;
        let prefix = key.len() + 1;
        if blob.len() < prefix || !blob.starts_with(key.as_bytes()) {
            return Err(BusError::Corrupt { digest: name.digest, reason: format!("it is not record {key}") });
        }
        Ok(blob.split_off(prefix))
    }

    /// Notes what lies at `key`.
    pub fn note(&self, key: &str, stored: &[u8], revision: Revision) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match Name::read(stored) {
            Some(name) => drop(known.insert(key.to_owned(), (revision, name.digest))),
            None => drop(known.remove(key)),
        }
    }

    /// Forgets the blob of the record that was replaced at `before`.
    pub async fn replaced(&self, bus: &Bus, key: &str, before: Revision, stored: &[u8]) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        let Some((_, digest)) = known.filter(|(revision, _)| *revision == before) else { return };
        if Name::read(stored).is_some_and(|name| name.digest == digest) {
            return;
        }
        forget(bus, key, &digest).await;
    }

    /// Forgets the blob of a record that was not written.
    pub async fn unused(&self, bus: &Bus, key: &str, stored: &[u8]) {
        if let Some(name) = Name::read(stored) {
            forget(bus, key, &name.digest).await;
        }
    }
}

async fn forget(bus: &Bus, key: &str, digest: &Digest) {
    if let Err(error) = bus.delete_blob(digest).await {
        tracing::warn!(key, %error, "blob of a record not deleted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_messages() {
        let name = Name { digest: Digest::of("x"), size: 7 };
        assert_eq!(Name::read(&name.write()), Some(name));
        for stored in [&b""[..], b"\x81", b"\xc1", &name.write()[..NAME - 1], b"{}"] {
            assert_eq!(Name::read(stored), None);
        }
        assert!(fedpeft_protocol::wire::Format::MessagePack.decode::<u8>(&name.write()).is_err());
    }
}
