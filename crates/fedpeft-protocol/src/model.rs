//! Published models: names and versions over content-addressed files.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Digest, ModelName, bounds, round::ByteKind};

/// One version of a model: the value at key `<name>.<version>` of the model bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelVersion {
    /// Protocol version of the writer.
    pub version: u32,
    /// Name.
    pub name: ModelName,
    /// Version, counted from 1 per name.
    pub number: u32,
    /// PEFT method of the artifacts.
    #[serde(deserialize_with = "bounds::text::<256, _>")]
    pub method: String,
    /// Blob of `manifest.json`, which names all other files by digest.
    pub manifest: Digest,
    /// Every file of the artifact folder, `manifest.json` included.
    #[serde(deserialize_with = "bounds::list::<64, _, _>")]
    pub files: Vec<FileEntry>,
    /// When it was published, in milliseconds since the Unix epoch.
    pub published_ms: u64,
}

/// One file of an artifact folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileEntry {
    /// File name: no separators, no leading dot.
    #[serde(deserialize_with = "bounds::text::<128, _>")]
    pub name: String,
    /// Blob.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// What its bytes count as.
    pub kind: ByteKind,
}

/// Whether `name` may be used as a file name inside an artifact folder: 1 to 128 of `[A-Za-z0-9._-]`, not
/// beginning with a dot, so that no message leads out of the folder.
pub fn is_safe_file_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::is_safe_file_name;

    #[test]
    fn names_cannot_leave_the_folder() {
        for good in ["manifest.json", "a", "backbone-12ab.bin"] {
            assert!(is_safe_file_name(good));
        }
        for bad in ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a\0b"] {
            assert!(!is_safe_file_name(bad), "{bad:?}");
        }
    }
}
