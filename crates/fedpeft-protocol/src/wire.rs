//! Bytes of a message: MessagePack with named fields for services, JSON for people, told apart by the
//! `Content-Type` header. Unknown fields are ignored (a newer minor version may add some); a different
//! protocol version is refused by name.

use std::io::Write;

use serde::{Serialize, de::DeserializeOwned};

use crate::{PROTOCOL_VERSION, bounds};

/// Encoding of a message body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `application/msgpack`: services among themselves.
    #[default]
    MessagePack,
    /// `application/json`: people with the `nats` CLI, and other languages.
    Json,
}

impl Format {
    /// The `Content-Type` that names this encoding.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::MessagePack => "application/msgpack",
            Self::Json => "application/json",
        }
    }

    /// The encoding a `Content-Type` names; a missing header means MessagePack.
    pub fn from_content_type(header: Option<&str>) -> Result<Self, WireError> {
        match header.map(|text| text.split(';').next().unwrap_or("").trim()) {
            None | Some("application/msgpack" | "application/x-msgpack") => Ok(Self::MessagePack),
            Some("application/json") => Ok(Self::Json),
            Some(other) => Err(WireError::ContentType(other.chars().take(80).collect())),
        }
    }

    /// Guesses the encoding of a request without a header: a JSON object begins with `{`, and `{` is no
    /// MessagePack map marker.
    pub fn sniff(header: Option<&str>, body: &[u8]) -> Result<Self, WireError> {
        match (header, body.iter().find(|b| !b.is_ascii_whitespace())) {
            (None, Some(b'{') | None) => Ok(Self::Json),
            _ => Self::from_content_type(header),
        }
    }

    /// Encodes `message`.
    pub fn encode<T: Serialize>(self, message: &T) -> Result<Vec<u8>, WireError> {
        self.encode_sized(message, 128)
    }

    /// As [`Self::encode`], where it will have about so many bytes: a large one is not copied as it grows.
    pub fn encode_sized<T: Serialize>(self, message: &T, bytes: usize) -> Result<Vec<u8>, WireError> {
        let mut body = Vec::with_capacity(bytes);
        self.encode_into(message, &mut body)?;
        Ok(body)
    }

    /// Encodes `message` as it is written, so that a large one need not be held.
    pub fn encode_into<T: Serialize>(self, message: &T, mut writer: impl Write) -> Result<(), WireError> {
        match self {
            Self::MessagePack => rmp_serde::encode::write_named(&mut writer, message)
                .map_err(|error| WireError::Encode(error.to_string())),
            Self::Json => {
                serde_json::to_writer(writer, message).map_err(|error| WireError::Encode(error.to_string()))
            }
        }
    }

    /// Decodes one message that must fill `body` to its end. What it takes in memory is bounded by a multiple of
    /// its length, whatever it claims; its payloads are copied once.
    pub fn decode<T: DeserializeOwned>(self, body: &[u8]) -> Result<T, WireError> {
        match self {
            Self::MessagePack => {
                let follow = bounds::message_pack(body).map_err(WireError::Decode)?;
                let mut deserializer = rmp_serde::Deserializer::from_read_ref(body);
                deserializer.set_max_depth(bounds::MAX_DEPTH);
                let message = T::deserialize(&mut deserializer)
                    .map_err(|e| WireError::Decode(shorten(&e.to_string())))?;
                match follow {
                    0 => Ok(message),
                    _ => Err(WireError::Decode(format!("{follow} bytes follow the message"))),
                }
            }
            Self::Json => {
                bounds::json(body).map_err(WireError::Decode)?;
                serde_json::from_slice(body).map_err(|e| WireError::Decode(shorten(&e.to_string())))
            }
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Checks the version a message declares.
pub fn check_version(version: u32) -> Result<(), WireError> {
    if version == PROTOCOL_VERSION { Ok(()) } else { Err(WireError::Version { got: version }) }
}

/// A body that could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header names an encoding we do not speak.
    #[error("content type {0:?} is not known: use application/msgpack or application/json")]
    ContentType(String),
    /// The value cannot be encoded.
    #[error("message cannot be encoded: {0}")]
    Encode(String),
    /// The bytes are not the message expected here.
    #[error("message cannot be decoded: {0}")]
    Decode(String),
    /// The sender speaks another protocol version.
    #[error(
        "message has protocol version {got}, this program speaks {PROTOCOL_VERSION}: upgrade the older side"
    )]
    Version {
        /// The version the message declared.
        got: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round::*;
    use proptest::prelude::*;

    fn update() -> Update {
        Update {
            version: PROTOCOL_VERSION,
            epoch: 3,
            task: "t".into(),
            outcome: Outcome::Trained {
                examples: 200,
                steps: 7,
                loss: 1.5,
                seconds: 2.5,
                adapter: Payload::inline(vec![1, 2, 3]),
                personal: None,
                control: None,
                epsilon: None,
            },
            fetched: vec![],
        }
    }

    #[test]
    fn both_formats_round_trip() {
        for format in [Format::MessagePack, Format::Json] {
            let bytes = format.encode(&update()).unwrap();
            assert_eq!(format.decode::<Update>(&bytes).unwrap(), update());
        }
    }

    #[test]
    fn payload_bytes_are_binary_not_arrays_of_numbers() {
        let mut message = update();
        let Outcome::Trained { adapter, .. } = &mut message.outcome else { unreachable!() };
        *adapter = Payload::inline(vec![200; 10_000]);
        assert!(Format::MessagePack.encode(&message).unwrap().len() < 10_300);
    }

    #[test]
    fn trailing_bytes_and_unknown_encodings_are_refused() {
        let mut bytes = Format::MessagePack.encode(&update()).unwrap();
        bytes.push(0);
        assert!(matches!(Format::MessagePack.decode::<Update>(&bytes), Err(WireError::Decode(_))));
        assert!(Format::from_content_type(Some("text/html")).is_err());
        assert_eq!(Format::sniff(None, b" {}").unwrap(), Format::Json);
        assert_eq!(Format::sniff(None, b"\x80").unwrap(), Format::MessagePack);
        assert!(check_version(2).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Format::MessagePack.decode::<Update>(&bytes);
            let _ = Format::MessagePack.decode::<Task>(&bytes);
            let _ = Format::Json.decode::<Update>(&bytes);
        }

        #[test]
        fn deep_nesting_is_refused(depth in 40usize..4000) {
            let mut bytes = vec![0x91; depth];
            bytes.push(0xc0);
            prop_assert!(Format::MessagePack.decode::<Update>(&bytes).is_err());
            prop_assert!(Format::MessagePack.decode::<serde_json::Value>(&bytes).is_err());
        }
    }
}
