//! What many clients of one process fetch, one after another.

use std::collections::VecDeque;

use bytes::Bytes;
use fedpeft_protocol::Digest;
use tokio::sync::Mutex;

use crate::{Bus, BusError, Measured};

/// Blobs that are kept: an adapter, and what may go beside it.
const KEPT: usize = 2;

/// The blobs that were fetched last, of those that fit a message: memory for two is taken, however many ask. Whoever asks
/// while one comes waits for it.
#[derive(Debug, Default)]
pub struct RecentBlobs(Mutex<VecDeque<(Digest, Bytes)>>);

impl RecentBlobs {
    /// A blob of at most `most` bytes, and what fetching took, if it was fetched now. Larger ones than fit a message are
    /// fetched by each.
    pub async fn get(
        &self,
        bus: &Bus,
        digest: &Digest,
        most: u64,
    ) -> Result<(Bytes, Option<Measured>), BusError> {
        if most > bus.max_payload() as u64 {
            let (bytes, measured) = bus.get_blob(digest, most).await?;
            return Ok((bytes, Some(measured)));
        }
        let mut kept = self.0.lock().await;
        if let Some((_, bytes)) = kept.iter().find(|(name, _)| name == digest) {
            return Ok((bytes.clone(), None));
        }
        let (bytes, measured) = bus.get_blob(digest, most).await?;
        kept.truncate(KEPT - 1);
        kept.push_front((*digest, bytes.clone()));
        Ok((bytes, Some(measured)))
    }
}
