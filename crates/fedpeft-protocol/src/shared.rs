//! Payloads that share the memory of the message in which they came.
//!
//! Serde lends a decoder parts of the message, but not the message itself, whose memory is counted by reference. So
//! the thread that decodes one remembers it until it is done.

use std::{cell::RefCell, fmt};

use bytes::Bytes;
use serde::{
    Deserializer, Serializer,
    de::{Error, SeqAccess, Visitor},
};

thread_local! {
    static MESSAGE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Runs `decode`, in which bytes that are borrowed from `message` become parts of it.
pub(crate) fn within<R>(message: &Bytes, decode: impl FnOnce() -> R) -> R {
    /// Forgets the message, whatever becomes of it.
    struct Remembered(Option<Bytes>);

    impl Drop for Remembered {
        fn drop(&mut self) {
            MESSAGE.replace(self.0.take());
        }
    }

    let _remembered = Remembered(MESSAGE.replace(Some(message.clone())));
    decode()
}

/// These bytes: part of the message if they lie in it, else a copy.
fn part(borrowed: &[u8]) -> Bytes {
    MESSAGE.with_borrow(|message| {
        let (bytes, found) = (borrowed.as_ptr_range(), message.as_ref().map(|bytes| bytes.as_ptr_range()));
        match (message, found) {
            (Some(message), Some(all)) if all.start <= bytes.start && bytes.end <= all.end => {
                message.slice_ref(borrowed)
            }
            _ => Bytes::copy_from_slice(borrowed),
        }
    })
}

pub(crate) fn serialize<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(data)
}

/// Bytes; JSON's arrays of numbers are accepted as well.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    deserializer.deserialize_byte_buf(Payload)
}

struct Payload;

impl<'de> Visitor<'de> for Payload {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Bytes, E> {
        Ok(part(bytes))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes::copy_from_slice(bytes))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(bytes.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
        self.visit_bytes(text.as_bytes())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Bytes, A::Error> {
        let mut bytes = Vec::with_capacity(numbers.size_hint().unwrap_or(0).min(4096));
        while let Some(byte) = numbers.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}
