//! Builds, stores and reads training artifacts.
//!
//! [`build()`] turns an ONNX export or a Hugging Face model folder into a folder that trains on any stock ONNX Runtime:
//!
//! | file | content |
//! | --- | --- |
//! | `training_model.onnx` | (inputs, labels, adapter) -> loss, correct, count, gradients |
//! | `dp_training_model.onnx` | (inputs, labels, adapter, clip_norm) -> loss, correct, count, clipped, sums of clipped gradients; on request |
//! | `eval_model.onnx` | (inputs, labels, adapter) -> loss, correct, count, logits |
//! | `optimizer_sgd.onnx`, `optimizer_adamw.onnx` | (adapter, gradients, state, constants) -> adapter', state' |
//! | `checkpoint.safetensors` | initial adapter |
//! | `backbone-<digest>.bin` | every weight of the backbone, external data of both models |
//! | `tokenizer.json` | how text becomes token ids, for models that read them |
//! | `manifest.json` | what all this is, with digests |
//!
//! Graphs of LoRA with residuals take these as inputs beside the adapter, see [`Manifest::residual`].

pub mod build;
mod checkpoint;
mod exported;
mod folder;
mod graphs;
mod inputs;
mod losses;
pub mod manifest;
pub mod optimizer;
mod source;
mod task;
mod weights;

pub use build::{BuildError, BuildOptions, InputOptions, TextOptions, backbone, build};
pub use checkpoint::{CheckpointError, read_checkpoint};
pub use exported::ExportedText;
pub use folder::{ArtifactFolder, FolderError};
pub use manifest::{Manifest, Storage};
pub use source::source_digest;
pub use weights::OutOfRange;
