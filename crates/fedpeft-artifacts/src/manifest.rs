//! `manifest.json`: what an artifact folder holds. It names every other file by digest, so its own digest
//! names the whole folder.

use std::collections::BTreeMap;

use fedpeft_codec::Layout;
use fedpeft_peft::Peft;
use fedpeft_protocol::{Digest, round::ByteKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Version of the folder's format.
pub const FORMAT_VERSION: u32 = 1;

/// The file that holds the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";

/// What an artifact folder holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// Version of this format, [`FORMAT_VERSION`].
    pub format: u32,
    /// PEFT method with its hyper-parameters.
    pub method: Peft,
    /// Trainable tensors in their order on the wire.
    pub adapter: Layout,
    /// Tensors of the backbone that the method would train but cannot, with the reason.
    #[serde(default)]
    pub excluded: BTreeMap<String, String>,
    /// The model's input.
    pub input: InputSpec,
    /// Classes; labels are `0..classes`.
    pub classes: u32,
    /// The backbone's parameters.
    pub backbone: BackboneSpec,
    /// Opset of the graphs.
    pub opset: i64,
    /// Every other file of the folder by its role.
    pub files: Files,
}

/// The model's input tensor. A batch has shape `[N, ..shape]`, N dynamic; values are `f32`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InputSpec {
    /// Name of the graph input.
    pub name: String,
    /// Shape of one example, without the batch dimension: channels, height, width.
    pub shape: Vec<u64>,
    /// Per-channel mean to subtract from values in `[0, 1]`.
    pub mean: Vec<f32>,
    /// Per-channel deviation to divide by.
    pub std: Vec<f32>,
}

/// The backbone's parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackboneSpec {
    /// Values in all its parameters, without the head.
    pub values: u64,
    /// Digest of the ONNX file it was cut from.
    pub source: Digest,
}

/// Files of the folder by role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Files {
    /// `(batch, labels, adapter) -> loss, correct, gradients`
    pub training: FileRef,
    /// `(batch, labels, adapter) -> loss, correct, logits`
    pub eval: FileRef,
    /// `(adapter, gradients, momentum, lr, ...) -> adapter', momentum'`
    pub optimizer_sgd: FileRef,
    /// `(adapter, gradients, moments, lr, step, ...) -> adapter', moments'`
    pub optimizer_adamw: FileRef,
    /// Initial adapter, safetensors.
    pub checkpoint: FileRef,
    /// Frozen weights, external data of the graphs; shared by all methods on one backbone.
    pub backbone: FileRef,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileRef {
    /// Name within the folder, see [`fedpeft_protocol::model::is_safe_file_name`].
    pub name: String,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

impl Files {
    /// Every file with what its bytes count as on the wire.
    pub fn all(&self) -> [(&FileRef, ByteKind); 6] {
        [
            (&self.training, ByteKind::Artifacts),
            (&self.eval, ByteKind::Artifacts),
            (&self.optimizer_sgd, ByteKind::Artifacts),
            (&self.optimizer_adamw, ByteKind::Artifacts),
            (&self.checkpoint, ByteKind::Artifacts),
            (&self.backbone, ByteKind::Backbone),
        ]
    }
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the expected shape.
    #[error("manifest is not readable: {0}")]
    Parse(#[from] serde_json::Error),
    /// Another format version.
    #[error("manifest has format {0}, this program reads format {FORMAT_VERSION}: rebuild the artifacts")]
    Format(u32),
    /// A file name that could leave the folder.
    #[error(
        "manifest names the file {0:?}: file names are 1 to 128 of A-Z a-z 0-9 . _ - and do not begin with a dot"
    )]
    FileName(String),
    /// An input without values.
    #[error(
        "manifest input shape {0:?} is not usable: every dimension must be at least 1 and all together at most 2^28"
    )]
    Input(Vec<u64>),
}

impl Manifest {
    /// Parses and checks `manifest.json`.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_slice(bytes)?;
        if format != FORMAT_VERSION {
            return Err(ManifestError::Format(format));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        let unsafe_name =
            |(file, _): &(&FileRef, ByteKind)| !fedpeft_protocol::model::is_safe_file_name(&file.name);
        if let Some((file, _)) = manifest.files.all().into_iter().find(unsafe_name) {
            return Err(ManifestError::FileName(file.name.clone()));
        }
        let shape = &manifest.input.shape;
        let values = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
        if !values.is_some_and(|n| (1..=1 << 28).contains(&n)) {
            return Err(ManifestError::Input(shape.clone()));
        }
        Ok(manifest)
    }

    /// The bytes of `manifest.json`; equal manifests give equal bytes.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// Suffix of the graph output that holds the gradient of an adapter tensor.
pub const GRADIENT_SUFFIX: &str = ".grad";
/// Graph input with the labels, `i64 [N]`.
pub const LABELS: &str = "labels";
/// Graph output with the mean loss over the batch, `f32` scalar.
pub const LOSS: &str = "loss";
/// Graph output with the number of right predictions in the batch, `i64` scalar.
pub const CORRECT: &str = "correct";
/// Graph output with the logits, `f32 [N, classes]`.
pub const LOGITS: &str = "logits";
