//! Chunks as their headers describe them.

use async_nats::HeaderMap;
use fedpeft_protocol::{Digest, subject::CHUNK_HEADER};
use sha2::{Digest as _, Sha256};

use super::place::Place;
use crate::{
    Bus, BusError, Measured,
    follow::{self, Follow},
};

/// Headers listed at once.
const BATCH: usize = 1024;

/// What a chunk says of itself in [`CHUNK_HEADER`]. Chunks of other programs say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// Offset of its first byte.
    pub offset: u64,
    /// Digest of the blob up to its last byte.
    pub prefix: Digest,
}

impl Mark {
    pub fn of(headers: Option<&HeaderMap>) -> Option<Self> {
        let (offset, prefix) = headers?.get(CHUNK_HEADER)?.as_str().split_once(' ')?;
        Some(Self { offset: offset.parse().ok()?, prefix: prefix.parse().ok()? })
    }

    pub fn header(&self) -> String {
        format!("{} {}", self.offset, self.prefix)
    }
}

/// The digest of what was hashed so far.
pub(super) fn digest_so_far(hasher: &Sha256) -> Digest {
    Digest::from_bytes(hasher.clone().finalize().into())
}

/// One stored chunk.
pub(super) struct Piece {
    pub sequence: u64,
    pub length: u64,
    pub mark: Option<Mark>,
}

/// The chunks of a blob that are stored at this moment, without their bytes.
pub(super) struct Pieces {
    follow: Follow,
    left: u64,
    /// Size of the listing.
    pub measured: Measured,
}

impl Pieces {
    /// Lists the chunks of subject `chunks` whose sequence is above `floor`.
    pub async fn list(bus: &Bus, place: &Place, chunks: &str, floor: u64) -> Result<Self, BusError> {
        let from = follow::From::After(floor);
        let follow = Follow::headers(bus, place.stream(), chunks.to_owned(), from, BATCH).await?;
        let left = follow.stored();
        Ok(Self { follow, left, measured: Measured::default() })
    }

    /// The next one.
    pub async fn next(&mut self, place: &Place) -> Result<Option<Piece>, BusError> {
        if self.left == 0 {
            return Ok(None);
        }
        let Ok(next) = tokio::time::timeout(super::read::STALLED, self.follow.next()).await else {
            return Err(BusError::Timeout { what: format!("listing the chunks of blob {}", place.digest) });
        };
        self.left = (self.left - 1).min(next.pending);
        let message = next.message.message;
        let headers = message.headers.as_ref();
        self.measured += Measured::of(&message.subject, headers, 0);
        let length = headers.and_then(|all| all.get("Nats-Msg-Size")?.as_str().parse().ok()).unwrap_or(0);
        Ok(Some(Piece { sequence: next.sequence, length, mark: Mark::of(headers) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_round_trip_and_others_are_none() {
        let mark = Mark { offset: 131_072, prefix: Digest::of(b"abc") };
        let headers = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CHUNK_HEADER, text);
            headers
        };
        assert_eq!(Mark::of(Some(&headers(&mark.header()))), Some(mark));
        for bad in ["", "1", "x 00", "-1 00", "1 zz"] {
            assert_eq!(Mark::of(Some(&headers(bad))), None, "{bad}");
        }
        assert_eq!(Mark::of(None), None);
    }
}
