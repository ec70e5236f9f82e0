//! Hugging Face model folders.

use fedpeft_hf::{CONFIG_FILE, WEIGHTS_FILE, import};

/// A configuration, then weights: imported for two lengths.
pub fn hugging_face(bytes: &[u8]) {
    let (config, weights) = crate::halves(bytes);
    let folder = crate::folder();
    crate::write(&folder.join(CONFIG_FILE), config);
    crate::write(&folder.join(WEIGHTS_FILE), weights);
    for length in [3, 600] {
        if let Ok(encoder) = import(&folder, length) {
            assert_eq!(encoder.length, length);
            let _ = encoder.model.to_bytes();
        }
    }
}
