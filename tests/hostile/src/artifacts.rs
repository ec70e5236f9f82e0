//! Artifact folders: the manifest and the checkpoint that it describes.

use fedpeft_artifacts::{Manifest, read_checkpoint};
use fedpeft_protocol::model::is_safe_file_name;

/// A manifest, then a checkpoint.
pub fn artifacts(bytes: &[u8]) {
    let (manifest, checkpoint) = crate::halves(bytes);
    let Ok(manifest) = Manifest::from_json(manifest) else { return };
    for (file, _) in manifest.all_files() {
        assert!(is_safe_file_name(&file.name) && file.name != "manifest.json", "{:?}", file.name);
    }
    let _ = manifest.labels();
    let _ = manifest.method.to_string();
    let Ok(written) = manifest.to_json() else { panic!("a manifest that was read is not written") };
    match Manifest::from_json(&written) {
        Ok(again) => assert_eq!(again, manifest),
        Err(error) => panic!("a manifest that was read is not read again: {error}"),
    }
    if let Ok(values) = read_checkpoint(checkpoint, &manifest.adapter) {
        assert_eq!(values.len(), manifest.adapter.values());
        assert!(values.iter().all(|value| value.is_finite()), "a checkpoint holds what is no number");
    }
}
