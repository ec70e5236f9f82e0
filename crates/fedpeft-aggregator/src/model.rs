//! The artifacts a run trains, as far as the aggregator needs them.

use bytes::Bytes;
use fedpeft_artifacts::manifest::{FileRef, Manifest, ManifestError};
use fedpeft_bus::{Bus, BusError};
use fedpeft_codec::Layout;
use fedpeft_protocol::{Digest, event::EventKind, model::ModelVersion, run::ModelRef, run::RunRecord};

use crate::{
    checkpoint::{self, CheckpointError},
    stop::Stop,
};

/// A manifest lists tensors by name and shape; thousands of them take less.
const MANIFEST_LIMIT: u64 = 16 << 20;
/// A checkpoint is the adapter's values behind a header that lists them.
const CHECKPOINT_HEADER_LIMIT: u64 = 16 << 20;

/// Artifacts that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    #[error("model {0} is not published: publish its artifacts with `fedpeft model push`")]
    NotPublished(String),
    #[error("artifacts {digest}: {source}")]
    Manifest { digest: Digest, source: ManifestError },
    #[error("artifacts {digest}: {source}")]
    Checkpoint { digest: Digest, source: CheckpointError },
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl From<ModelError> for Stop {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Bus(error) => error.into(),
            unusable => Self::Failed(unusable.to_string()),
        }
    }
}

/// Finds the version a run asks for, the newest one where it names none.
pub(crate) async fn resolve(bus: &Bus, reference: &ModelRef) -> Result<ModelVersion, ModelError> {
    let models = bus.models().await?;
    let name = &reference.name;
    let number = match reference.version {
        Some(number) => Some(number),
        None => {
            let keys = models.keys(name.as_str()).await?;
            keys.iter().filter_map(|key| key.rsplit('.').next()?.parse().ok()).max()
        }
    };
    let missing = || match reference.version {
        Some(number) => ModelError::NotPublished(format!("{name} version {number}")),
        None => ModelError::NotPublished(name.to_string()),
    };
    let found = models.get(&format!("{name}.{}", number.ok_or_else(missing)?)).await?;
    found.map(|(version, _)| version).ok_or_else(missing)
}

/// The artifacts a run trains.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// Tensors of the adapter in their order on the wire.
    pub layout: Layout,
    method: String,
    backbone_values: u64,
    manifest: Digest,
    checkpoint: FileRef,
}

impl Model {
    /// Reads the manifest blob.
    pub async fn load(bus: &Bus, manifest: &Digest) -> Result<Self, ModelError> {
        let (bytes, _) = bus.get_blob(manifest, MANIFEST_LIMIT).await?;
        let parsed = Manifest::from_json(&bytes)
            .map_err(|source| ModelError::Manifest { digest: *manifest, source })?;
        Ok(Self {
            layout: parsed.adapter,
            method: parsed.method.to_string(),
            backbone_values: parsed.backbone.values,
            manifest: *manifest,
            checkpoint: parsed.files.checkpoint,
        })
    }

    /// The adapter before any training, encoded.
    pub async fn initial_adapter(&self, bus: &Bus) -> Result<Bytes, ModelError> {
        let limit = self.layout.bytes().saturating_add(CHECKPOINT_HEADER_LIMIT);
        let (bytes, _) = bus.get_blob(&self.checkpoint.digest, limit).await?;
        checkpoint::adapter(&bytes, &self.layout)
            .map_err(|source| ModelError::Checkpoint { digest: self.manifest, source })
    }
}

/// The event that says where a run stands. Its figures are zero where the artifacts cannot be read.
pub(crate) fn status_event(record: &RunRecord, model: Option<&Model>) -> EventKind {
    EventKind::Status {
        status: record.status.clone(),
        method: model.map(|model| model.method.clone()).unwrap_or_default(),
        rounds: record.spec.rounds,
        adapter_values: model.map_or(0, |model| model.layout.values() as u64),
        backbone_values: model.map_or(0, |model| model.backbone_values),
    }
}
