//! From an artifact folder into the registry.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use fedpeft_artifacts::{Manifest, manifest::MANIFEST_FILE};
use fedpeft_bus::{Bus, BusError};
use fedpeft_protocol::{
    Digest, ModelName,
    api::PublishModel,
    model::{FileEntry, ModelVersion},
    round::ByteKind,
};

use crate::{MANIFEST_LIMIT, RegistryError};

/// Stores every file of an artifact folder and publishes it as the next version of `name`. Files that are
/// stored already are not sent again; a folder that is published already keeps its version. `progress` is
/// told the name of a file, the bytes of it that are safe, and its size.
pub async fn push_folder(
    bus: &Bus,
    folder: &Path,
    name: &ModelName,
    mut progress: impl FnMut(&str, u64, u64),
) -> Result<ModelVersion, RegistryError> {
    let path = folder.join(MANIFEST_FILE);
    let bytes = read_manifest(&path).await?;
    let origin = || path.display().to_string();
    let manifest =
        Manifest::from_json(&bytes).map_err(|source| RegistryError::Manifest { origin: origin(), source })?;
    let mut files = vec![FileEntry {
        name: MANIFEST_FILE.into(),
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
        kind: ByteKind::Artifacts,
    }];
    for (file, kind) in manifest.all_files() {
        let entry = FileEntry { name: file.name.clone(), digest: file.digest, size: file.size, kind };
        if !files.contains(&entry) {
            files.push(entry);
        }
    }
    for entry in &files[1..] {
        let path = folder.join(&entry.name);
        let report = |done| progress(&entry.name, done, entry.size);
        match bus.put_blob_file_as(entry.digest, entry.size, &path, report).await {
            Ok(_) => {}
            Err(BusError::Corrupt { reason, .. }) => return Err(RegistryError::Mismatch { path, reason }),
            Err(error) => return Err(error.into()),
        }
    }
    let stored = bus.put_blob(bytes).await?;
    progress(MANIFEST_FILE, stored.size, stored.size);
    let request = PublishModel {
        name: name.clone(),
        method: manifest.method.to_string(),
        manifest: stored.digest,
        files,
    };
    Ok(bus.request("models.publish", &request).await?)
}

async fn read_manifest(path: &PathBuf) -> Result<Bytes, RegistryError> {
    let size = tokio::fs::metadata(path).await.map_err(RegistryError::file(path))?.len();
    if size > MANIFEST_LIMIT {
        let error = std::io::Error::other(format!("{size} bytes are too many for a manifest"));
        return Err(RegistryError::file(path)(error));
    }
    Ok(tokio::fs::read(path).await.map_err(RegistryError::file(path))?.into())
}
