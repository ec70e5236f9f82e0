//! `manifest.json`: what an artifact folder holds. It names every other file by digest, so its own digest
//! names the whole folder.

use std::collections::BTreeMap;

use fedpeft_codec::{InvalidLayout, Layout, residuals};
use fedpeft_peft::Peft;
use fedpeft_protocol::{Digest, model::is_safe_file_name, round::ByteKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inputs;
pub use crate::{
    inputs::{ElementType, InputSource, InputSpec, InvalidInput, TextSpec},
    task::{IGNORED, InvalidTask, TaskSpec},
};

/// Version of the folder's format.
pub const FORMAT_VERSION: u32 = 2;

/// The file that holds the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Largest manifest read, in bytes; that of a model with ten thousand adapter tensors has two megabytes.
pub const MANIFEST_LIMIT: u64 = 16 << 20;

/// What an artifact folder holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// Version of this format, [`FORMAT_VERSION`].
    pub format: u32,
    /// PEFT method with its hyper-parameters.
    pub method: Peft,
    /// Trainable tensors in their order on the wire. With residuals, which [`Self::residual`] derives from it, the graphs
    /// have an input more for each pair of factors.
    pub adapter: Layout,
    /// Tensors of the backbone that the method would train but cannot, with the reason.
    #[serde(default)]
    pub excluded: BTreeMap<String, String>,
    /// The model's inputs, in the order in which batches are given.
    pub inputs: Vec<InputSpec>,
    /// How text becomes token ids, for models that read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextSpec>,
    /// What is learned: labels and loss.
    pub task: TaskSpec,
    /// The backbone's parameters.
    pub backbone: BackboneSpec,
    /// Opset of the graphs.
    pub opset: i64,
    /// Every other file of the folder by its role.
    pub files: Files,
}

/// The backbone's parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackboneSpec {
    /// Values in all its parameters, without the head.
    pub values: u64,
    /// How its matrices are stored.
    #[serde(default)]
    pub storage: Storage,
    /// Digest of what it was cut from, see [`crate::source_digest`].
    pub source: Digest,
}

/// How the matrices of the backbone are stored. Whatever this is, they are computed with in `f32`, and small
/// tensors and the adapter are `f32` throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// Four bytes a value, which the runtime maps.
    #[default]
    F32,
    /// Two bytes a value, 11 bits of precision; values up to 65,504.
    F16,
    /// Two bytes a value, 8 bits of precision, the range of `f32`.
    Bf16,
}

/// Files of the folder by role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Files {
    /// `(inputs, labels, adapter) -> loss, correct, count, gradients`
    pub training: FileRef,
    /// `(inputs, labels, adapter, clip_norm) -> loss, correct, count, clipped, sums of clipped gradients`, where the
    /// artifacts were built for DP-SGD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dp_training: Option<FileRef>,
    /// `(inputs, labels, adapter) -> loss, correct, count, logits`
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
    /// Every file of a role, with what its bytes count as on the wire.
    fn all(&self) -> impl Iterator<Item = (&FileRef, ByteKind)> {
        let dp_training = self.dp_training.iter().map(|file| (file, ByteKind::Artifacts));
        let always = [
            (&self.training, ByteKind::Artifacts),
            (&self.eval, ByteKind::Artifacts),
            (&self.optimizer_sgd, ByteKind::Artifacts),
            (&self.optimizer_adamw, ByteKind::Artifacts),
            (&self.checkpoint, ByteKind::Artifacts),
            (&self.backbone, ByteKind::Backbone),
        ];
        always.into_iter().chain(dp_training)
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
    /// One name for two files, or for one beside the manifest itself.
    #[error("manifest names two files {0:?}: each file of a folder has a name of its own")]
    FileTwice(String),
    /// Inputs that cannot be.
    #[error("manifest: {0}")]
    Input(#[from] InvalidInput),
    /// A task that cannot be.
    #[error("manifest: {0}")]
    Task(#[from] InvalidTask),
    /// Residuals that nobody could hold.
    #[error("manifest: residuals: {0}")]
    Residual(#[from] InvalidLayout),
    /// Residuals of nothing.
    #[error("manifest: the method has residuals, but the adapter has no pair of LoRA factors")]
    NoPairs,
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
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether a stranger's manifest may be worked with.
    pub(crate) fn check(&self) -> Result<(), ManifestError> {
        if let Some((file, _)) = self.all_files().into_iter().find(|(file, _)| !is_safe_file_name(&file.name))
        {
            return Err(ManifestError::FileName(file.name.chars().take(128).collect()));
        }
        let mut files = BTreeMap::new();
        for (file, _) in self.all_files() {
            // Graphs without constants may be equal, and are then one file.
            let other = files.insert(file.name.as_str(), file);
            if file.name == MANIFEST_FILE || other.is_some_and(|other| other != file) {
                return Err(ManifestError::FileTwice(file.name.clone()));
            }
        }
        inputs::check(&self.inputs, self.text.as_ref())?;
        let residual = self.residual()?;
        let given = residual.iter().flat_map(Layout::tensors);
        let tensors: Vec<_> = self.adapter.tensors().iter().chain(given).map(|spec| &spec.name).collect();
        let taken = |input: &&InputSpec| input.name == LABELS || tensors.contains(&&input.name);
        if let Some(input) = self.inputs.iter().find(taken) {
            return Err(InvalidInput::NameTaken(input.name.clone()).into());
        }
        self.task.check()?;
        self.task.label_shape(&self.inputs)?;
        Ok(())
    }

    /// What LoRA's factors do not hold of the mean updates, where the method has residuals ([`fedpeft_peft::Lora`]): inputs
    /// of the graphs that no client trains or sends.
    ///
    /// # Errors
    /// [`ManifestError`] where it cannot be; not of a manifest that was checked.
    pub fn residual(&self) -> Result<Option<Layout>, ManifestError> {
        if !self.method.has_residuals() {
            return Ok(None);
        }
        residuals(&self.adapter)?.map_or(Err(ManifestError::NoPairs), |layout| Ok(Some(layout)))
    }

    /// Type of a batch's labels, and their shape for one example.
    pub fn labels(&self) -> Result<(ElementType, Vec<u64>), InvalidTask> {
        Ok((self.task.label_type(), self.task.label_shape(&self.inputs)?))
    }

    /// Every other file of the folder with what its bytes count as on the wire.
    pub fn all_files(&self) -> Vec<(&FileRef, ByteKind)> {
        let tokenizer = self.text.as_ref().map(|text| (&text.tokenizer, ByteKind::Artifacts));
        self.files.all().chain(tokenizer).collect()
    }

    /// The bytes of `manifest.json`; equal manifests give equal bytes.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// Suffix of the graph output that holds the gradient of an adapter tensor, or the sum of the examples' clipped ones.
pub const GRADIENT_SUFFIX: &str = ".grad";
/// Graph input with the labels, see [`TaskSpec`].
pub const LABELS: &str = "labels";
pub use fedpeft_peft::DROPOUT_SEED;
/// Input of the graph for DP-SGD with the longest gradient that an example may have, `f32` scalar.
pub const CLIP_NORM: &str = "clip_norm";
/// Output of the graph for DP-SGD with the number of examples whose gradient was clipped, `i64` scalar. It is about the
/// examples and has no noise: it must not leave the client.
pub const CLIPPED: &str = "clipped";
/// Graph output with the mean loss over the batch, `f32` scalar.
pub const LOSS: &str = "loss";
/// Graph output with the number of right decisions in the batch, `i64` scalar.
pub const CORRECT: &str = "correct";
/// Graph output with the number of decisions that [`CORRECT`] is out of, `i64` scalar: examples, labels of all
/// examples, or scored tokens. Regression makes none.
pub const COUNT: &str = "count";
/// Graph output with the logits, `f32 [N, width]`, or `[N, T, vocabulary]` of a language model.
pub const LOGITS: &str = "logits";
