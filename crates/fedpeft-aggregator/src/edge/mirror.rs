//! Copies of upstream blobs on the broker of an edge. They are named by their content: each is fetched once, and not
//! believed before it was hashed.

use fedpeft_artifacts::manifest::Manifest;
use fedpeft_bus::BusError;
use fedpeft_protocol::{
    Digest,
    round::{ByteKind, Direction, Transfer},
};

use super::Edge;
use crate::{model::MANIFEST_LIMIT, stop::Stop};

/// The artifacts of a run: all that its clients need to train.
pub(super) async fn artifacts(edge: &Edge, digest: &Digest) -> Result<Vec<Transfer>, Stop> {
    let (mut fetched, local) = (Vec::new(), &edge.shop.bus);
    let is_here = local.has_blob(digest).await?;
    let source = if is_here { local } else { &edge.upstream };
    let (bytes, measured) = source.get_blob(digest, MANIFEST_LIMIT).await?;
    let manifest =
        Manifest::from_json(&bytes).map_err(|error| Stop::Failed(format!("artifacts {digest}: {error}")))?;
    for (file, kind) in manifest.all_files() {
        fetched.extend(copy(edge, &file.digest, file.size, kind).await?);
    }
    if !is_here {
        // Last: a manifest that is here has all its files here.
        local.put_blob(bytes).await?;
        fetched.push(measured.transfer(Direction::Down, ByteKind::Artifacts));
    }
    Ok(fetched)
}

/// A global adapter that does not fit a message upstream.
pub(super) async fn adapter(edge: &Edge, digest: &Digest, size: u64) -> Result<Option<Transfer>, Stop> {
    copy(edge, digest, size, ByteKind::Adapter).await
}

/// Copies a blob, unless it is there; what that took.
async fn copy(edge: &Edge, digest: &Digest, size: u64, kind: ByteKind) -> Result<Option<Transfer>, Stop> {
    let (local, spool) = (&edge.shop.bus, &edge.shop.spool);
    if local.has_blob(digest).await? {
        return Ok(None);
    }
    let get = async |file| edge.upstream.get_blob_into(digest, size, file).await;
    let (blob, measured) = spool.fetched(size, get).await??;
    blob.store(local).await.map_err(|error| match error {
        BusError::File { source, .. } => spool.unusable(source).into(),
        error => Stop::from(error),
    })?;
    tracing::debug!(%digest, size, kind = kind.label(), "blob mirrored");
    Ok(Some(measured.transfer(Direction::Down, kind)))
}
