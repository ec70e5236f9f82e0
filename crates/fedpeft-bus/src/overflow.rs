//! Records that do not fit a message, as the report of a round of ten thousand clients: the record's place then names
//! a blob that holds it.
//!
//! The blob is stored first, so that who finds its name finds it. What replaces such a record forgets its blob; a
//! process that dies in between leaves one that nobody reads, which costs space and nothing else.
//!
//! Such a record is compressed while it is encoded, and held in no other form.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{BufMut, Bytes, BytesMut};
use fedpeft_protocol::{
    Digest,
    wire::{Format, WireError},
};
use serde::Serialize;
use zstd::{Encoder, zstd_safe::CParameter};

use crate::{Bus, BusError, Revision};

/// No MessagePack begins with this byte.
const MARK: u8 = 0xc1;
/// Mark, digest, size.
const NAME: usize = 1 + 32 + 8;
/// A record takes at most this share of the largest message: whoever lists records gets several in a reply.
const SHARE: usize = 4;
/// Largest record, wherever it lies.
const LARGEST: u64 = 64 << 20;
/// What the blob of a compressed record begins with after its key; no record begins like this, for it is a map.
const FRAME: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// Records are lists of much the same: they need neither a high level nor a wide window (32 KiB), by which the compressor's
/// memory goes.
const LEVEL: i32 = 1;
const WINDOW_LOG: u32 = 15;

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
    pub async fn packed<T: Serialize>(
        &self,
        bus: &Bus,
        what: &str,
        key: &str,
        value: &T,
    ) -> Result<Bytes, BusError> {
        let mut spill = Spill::new(key, bus.max_payload() / SHARE);
        let encoded = Format::MessagePack.encode_into(value, &mut spill);
        if spill.size > LARGEST as usize {
            let (size, limit) = (spill.size, LARGEST as usize);
            return Err(BusError::MessageTooLarge { what: what.into(), size, limit });
        }
        encoded.map_err(|error| BusError::wire(what, error))?;
        match spill.done() {
            Ok(Packed::Record(body)) => Ok(body.into()),
            Ok(Packed::Blob(blob)) => {
                let stored = bus.put_blob(blob.into()).await?;
                Ok(Name { digest: stored.digest, size: stored.size }.write())
            }
            Err(error) => Err(BusError::wire(what, WireError::Encode(error.to_string()))),
        }
    }

    /// The record that `stored` is or names.
    pub async fn unpacked(&self, bus: &Bus, key: &str, stored: Bytes) -> Result<Bytes, BusError> {
        let Some(name) = Name::read(&stored) else { return Ok(stored) };
        let (mut blob, _) = bus.get_blob(&name.digest, name.size.min(LARGEST)).await?;
        let corrupt = |reason: String| BusError::Corrupt { digest: name.digest, reason };
        let prefix = key.len() + 1;
        if blob.len() < prefix || !blob.starts_with(key.as_bytes()) {
            return Err(corrupt(format!("it is not record {key}")));
        }
        let body = blob.split_off(prefix);
        if !body.starts_with(&FRAME) {
            return Ok(body);
        }
        let record = expanded(&body).map_err(|error| corrupt(format!("record {key} is damaged: {error}")))?;
        Ok(record.into())
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

/// A record as it is encoded: held while it is small, else compressed, behind its key, so that no other record has the same
/// blob.
struct Spill<'a> {
    key: &'a str,
    /// Bytes of the record so far.
    size: usize,
    most: usize,
    held: Vec<u8>,
    frame: Option<Encoder<'static, Vec<u8>>>,
}

/// What became of a record.
enum Packed {
    /// It is small.
    Record(Vec<u8>),
    /// This blob holds it.
    Blob(Vec<u8>),
}

impl<'a> Spill<'a> {
    fn new(key: &'a str, most: usize) -> Self {
        Self { key, size: 0, most, held: Vec::new(), frame: None }
    }

    fn done(self) -> io::Result<Packed> {
        match self.frame {
            Some(frame) => frame.finish().map(Packed::Blob),
            None => Ok(Packed::Record(self.held)),
        }
    }

    fn begin(&mut self) -> io::Result<Encoder<'static, Vec<u8>>> {
        let mut frame = Encoder::new(format!("{}\n", self.key).into_bytes(), LEVEL)?;
        frame.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
        frame.write_all(&std::mem::take(&mut self.held))?;
        Ok(frame)
    }
}

impl Write for Spill<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.size += bytes.len();
        if self.size > LARGEST as usize {
            return Err(io::Error::other("the record is too large"));
        }
        if self.frame.is_none() && self.size > self.most {
            self.frame = Some(self.begin()?);
        }
        match &mut self.frame {
            Some(frame) => frame.write_all(bytes)?,
            None => self.held.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a frame holds.
fn expanded(frame: &[u8]) -> io::Result<Vec<u8>> {
    let mut record = Vec::new();
    let mut reader = zstd::Decoder::new(frame)?;
    reader.window_log_max(WINDOW_LOG)?;
    reader.take(LARGEST + 1).read_to_end(&mut record)?;
    match record.len() as u64 > LARGEST {
        true => Err(io::Error::other("it is too large")),
        false => Ok(record),
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
    fn large_records_are_compressed_as_they_are_encoded() {
        let packed = |record: &[u8], most| {
            let mut spill = Spill::new("r.1", most);
            record.chunks(7).for_each(|some| spill.write_all(some).unwrap());
            spill.done().unwrap()
        };
        let record: Vec<u8> = (0..100_000_u32).map(|at| 0x80 | (at % 90) as u8).collect();
        assert!(matches!(packed(&record, record.len()), Packed::Record(held) if held == record));
        let Packed::Blob(blob) = packed(&record, record.len() - 1) else { panic!("it is held") };
        let frame = blob.strip_prefix(b"r.1\n").unwrap();
        assert!(frame.starts_with(&FRAME) && frame.len() < record.len() / 10);
        assert_eq!(expanded(frame).unwrap(), record);
        for damaged in [&frame[..frame.len() - 1], &frame[..5]] {
            assert!(expanded(damaged).is_err());
        }
    }

    #[test]
    fn no_record_expands_beyond_the_largest() {
        let mut spill = Spill::new("r.1", 10);
        let block = vec![0; 1 << 20];
        (0..64).for_each(|_| spill.write_all(&block).unwrap());
        assert!(spill.write_all(&[0]).is_err());
        let bomb = zstd::encode_all(io::repeat(0).take(LARGEST + 1), LEVEL).unwrap();
        assert!(expanded(&bomb).is_err());
    }

    #[test]
    fn names_are_no_messages() {
        let name = Name { digest: Digest::of("x"), size: 7 };
        assert_eq!(Name::read(&name.write()), Some(name));
        for stored in [&b""[..], b"\x81", b"\xc1", &name.write()[..NAME - 1], b"{}"] {
            assert_eq!(Name::read(stored), None);
        }
        assert!(Format::MessagePack.decode::<u8>(&name.write()).is_err());
    }
}
