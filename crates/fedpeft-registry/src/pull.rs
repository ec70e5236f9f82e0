//! From the registry into a local folder.

use std::path::PathBuf;

use fedpeft_artifacts::{
    Manifest,
    manifest::{FileRef, MANIFEST_FILE},
};
use fedpeft_bus::{Bus, Measured};
use fedpeft_protocol::{
    Digest,
    round::{ByteKind, Direction, Transfer},
};

use crate::{Cache, MANIFEST_LIMIT, RegistryError};

/// A pulled artifact folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulled {
    /// Where its files lie.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Bytes it took; empty when all of it was there.
    pub transfers: Vec<Transfer>,
}

/// Fetches and checks a manifest without anything else.
pub async fn manifest(bus: &Bus, digest: &Digest) -> Result<(Manifest, Measured), RegistryError> {
    let (bytes, measured) = bus.get_blob(digest, MANIFEST_LIMIT).await?;
    Ok((parse(digest, &bytes)?, measured))
}

/// Makes the artifact folder of a manifest appear in `cache`. What is there already is not fetched again:
/// files of the right size are taken as they are, or hashed first where `verify` says so. `progress` is told
/// the name of a file, the bytes of it that came, and its size.
pub async fn pull(
    bus: &Bus,
    digest: &Digest,
    cache: &Cache,
    verify: bool,
    mut progress: impl FnMut(&str, u64, u64),
) -> Result<Pulled, RegistryError> {
    cache.prepare(digest)?;
    let (manifest, fetched) = cached_manifest(bus, digest, cache).await?;
    let mut transfers: Vec<Transfer> = fetched.map(|m| down(ByteKind::Artifacts, m)).into_iter().collect();
    cache.link(digest, digest, MANIFEST_FILE)?;
    for (file, kind) in manifest.all_files() {
        let report = |done| progress(&file.name, done, file.size);
        if let Some(measured) = fetch(bus, file, cache, verify, report).await? {
            transfers.push(down(kind, measured));
        }
        cache.link(&file.digest, digest, &file.name)?;
    }
    Ok(Pulled { folder: cache.artifacts(digest), manifest, transfers })
}

/// The manifest is small and everything hangs on it, so it is hashed every time.
async fn cached_manifest(
    bus: &Bus,
    digest: &Digest,
    cache: &Cache,
) -> Result<(Manifest, Option<Measured>), RegistryError> {
    if let Ok(bytes) = tokio::fs::read(cache.blob(digest)).await
        && Digest::of(&bytes) == *digest
    {
        return Ok((parse(digest, &bytes)?, None));
    }
    let (bytes, measured) = bus.get_blob(digest, MANIFEST_LIMIT).await?;
    let manifest = parse(digest, &bytes)?;
    cache.store(digest, &bytes)?;
    Ok((manifest, Some(measured)))
}

/// Of several processes that want one file, one fetches it and the others wait for it.
async fn fetch(
    bus: &Bus,
    file: &FileRef,
    cache: &Cache,
    verify: bool,
    mut progress: impl FnMut(u64),
) -> Result<Option<Measured>, RegistryError> {
    let _claim = cache.claim(&file.digest).await;
    if cache.has(&file.digest, file.size) && (!verify || verified(cache, &file.digest).await?) {
        progress(file.size);
        return Ok(None);
    }
    let dest = cache.blob(&file.digest);
    Ok(Some(bus.get_blob_file(&file.digest, file.size, &dest, progress).await?))
}

/// Hashing a backbone takes a while: not on a thread that serves heartbeats.
async fn verified(cache: &Cache, digest: &Digest) -> Result<bool, RegistryError> {
    let (cache, digest) = (cache.clone(), *digest);
    let path = cache.blob(&digest);
    let hashing = tokio::task::spawn_blocking(move || cache.verify(&digest));
    hashing.await.map_err(|error| RegistryError::file(path)(std::io::Error::other(error)))?
}

fn parse(digest: &Digest, bytes: &[u8]) -> Result<Manifest, RegistryError> {
    Manifest::from_json(bytes)
        .map_err(|source| RegistryError::Manifest { origin: format!("blob {digest}"), source })
}

fn down(kind: ByteKind, measured: Measured) -> Transfer {
    measured.transfer(Direction::Down, kind)
}
