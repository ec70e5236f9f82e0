//! Builds, stores and reads training artifacts.
//!
//! [`build()`] turns an ONNX export into a folder that trains on any stock ONNX Runtime:
//!
//! | file | content |
//! | --- | --- |
//! | `training_model.onnx` | (batch, labels, adapter) -> loss, correct, gradients |
//! | `eval_model.onnx` | (batch, labels, adapter) -> loss, correct, logits |
//! | `optimizer_sgd.onnx`, `optimizer_adamw.onnx` | (adapter, gradients, state, constants) -> adapter', state' |
//! | `checkpoint.safetensors` | initial adapter |
//! | `backbone-<digest>.bin` | every weight of the backbone, external data of both models |
//! | `manifest.json` | what all this is, with digests |

pub mod build;
mod checkpoint;
mod folder;
mod graphs;
pub mod manifest;
pub mod optimizer;

pub use build::{BuildError, BuildOptions, build};
pub use checkpoint::{CheckpointError, read_checkpoint};
pub use folder::{ArtifactFolder, FolderError};
pub use manifest::Manifest;
