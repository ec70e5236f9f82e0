//! Bytes from strangers.
//!
//! One function for each kind of input that comes from elsewhere. It takes the bytes through everything that our
//! programs do with them before they trust them, and panics where that breaks a promise: a panic of ours, a value
//! that was accepted and cannot be written again, a sum that changed although the update was refused. `fuzz/` calls
//! these functions with whatever libFuzzer thinks of, and the tests here replay the corpus that came of it.

#![allow(clippy::panic, reason = "a broken promise is reported by panicking")]

mod adapter;
mod artifacts;
mod hugging_face;
mod message;
mod onnx;
mod text;

pub use adapter::adapter;
pub use artifacts::artifacts;
pub use hugging_face::hugging_face;
pub use message::message;
pub use onnx::{WEIGHTS, onnx, training};
pub use text::text;

use std::{path::PathBuf, sync::OnceLock};

/// A target: its name, which is that of its corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 7] = [
    ("message", message),
    ("adapter", adapter),
    ("onnx", onnx),
    ("training", training),
    ("artifacts", artifacts),
    ("hugging_face", hugging_face),
    ("text", text),
];

/// Splits `bytes` in two at a length that its first two bytes say.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.split_first_chunk::<2>() {
        Some((length, rest)) => rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*length)))),
        None => (bytes, &[]),
    }
}

/// What [`halves`] takes apart.
pub fn joined(first: &[u8], second: &[u8]) -> Vec<u8> {
    let length = u16::try_from(first.len()).unwrap_or(u16::MAX);
    [&length.to_le_bytes(), first, second].concat()
}

/// A folder of this process for files that only exist while a target runs.
fn folder() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let make = || match tempfile::Builder::new().prefix("fedpeft-hostile-").tempdir() {
        Ok(folder) => folder.keep(),
        Err(error) => panic!("no folder for files: {error}"),
    };
    // One for each thread, for tests run side by side.
    let name = format!("{:?}", std::thread::current().id());
    let folder = FOLDER.get_or_init(make).join(name);
    if let Err(error) = std::fs::create_dir_all(&folder) {
        panic!("no folder for files: {error}");
    }
    folder
}

fn write(path: &std::path::Path, bytes: &[u8]) {
    if let Err(error) = std::fs::write(path, bytes) {
        panic!("{}: {error}", path.display());
    }
}
