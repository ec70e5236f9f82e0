//! The artifacts a run trains, as far as the aggregator needs them.

use std::sync::Arc;

use fedpeft_artifacts::manifest::{FileRef, Manifest, ManifestError};
use fedpeft_bus::{Bus, BusError};
use fedpeft_codec::{CodecError, InvalidScope, Layout, Scope, residuals};
use fedpeft_peft::{Method, Peft};
use fedpeft_protocol::{
    Digest, event::EventKind, model::ModelVersion, run::AggregationSpec, run::ModelRef, run::RunRecord,
    run::RunSpec,
};

use fedpeft_strategy::{AccumulateError, lora};

use crate::{
    checkpoint::{self, CheckpointError},
    spool::{Adapter, Spool, Target, Unusable},
    stop::Stop,
};

/// A manifest lists tensors by name and shape; thousands of them take less.
pub(crate) const MANIFEST_LIMIT: u64 = 16 << 20;
/// Room that a message needs besides the adapter in it.
pub(crate) const ENVELOPE: u64 = 8 << 10;

/// What is held in memory beside an adapter that is has at most so many times the bytes of a message.
const HELD: u64 = 4;

/// Artifacts that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    #[error("model {0} is not published: publish its artifacts with `fedpeft models push`")]
    NotPublished(String),
    #[error("artifacts {digest}: {source}")]
    Manifest { digest: Digest, source: ManifestError },
    #[error("artifacts {digest}: {source}")]
    Checkpoint { digest: Digest, source: CheckpointError },
    #[error("the downlink cannot hold the global adapter: {0}")]
    Downlink(CodecError),
    #[error("aggregation {0}: {1}")]
    Aggregation(&'static str, AccumulateError),
    #[error(
        "aggregation lora_exact: the artifacts have no residuals for what the mean factors do not hold: build them with \
         --method lora --residual"
    )]
    NoResiduals,
    #[error("aggregation lora_exact: training.local keeps LoRA factors at the clients: leave them out of it")]
    LocalFactors,
    #[error(
        "training.cache_features is for artifacts that train a head alone, those of {0} train within the backbone: leave it out"
    )]
    Features(String),
    #[error(transparent)]
    Scope(#[from] InvalidScope),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Spool(#[from] Unusable),
    #[error("reading the checkpoint broke off: {0}")]
    BrokenOff(#[from] tokio::task::JoinError),
}

impl From<ModelError> for Stop {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Bus(error) => error.into(),
            ModelError::Spool(error) => error.into(),
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
    /// Tensors of the adapter in their order on the wire, without those that stay with the clients.
    pub layout: Layout,
    /// What its LoRA factors do not hold of the mean updates, where the run keeps that.
    pub residual: Option<Layout>,
    /// Bytes of all tensors.
    whole: u64,
    /// Payloads of a message: the adapter and what goes beside it.
    payloads: u64,
    method: String,
    backbone_values: u64,
    manifest: Digest,
    checkpoint: FileRef,
}

impl Model {
    /// Reads the manifest blob, for a run that `spec` asks for.
    pub async fn load(bus: &Bus, manifest: &Digest, spec: &RunSpec) -> Result<Self, ModelError> {
        let (bytes, _) = bus.get_blob(manifest, MANIFEST_LIMIT).await?;
        let parsed = Manifest::from_json(&bytes)
            .map_err(|source| ModelError::Manifest { digest: *manifest, source })?;
        let scope = Scope::new(&parsed.adapter, &spec.training.local)?;
        if let Some(kind) = spec.aggregation.products() {
            lora::Pair::all(scope.shared()).map_err(|error| ModelError::Aggregation(kind, error))?;
        }
        let residual = match spec.aggregation {
            AggregationSpec::LoraExact => Some(residual((manifest, &parsed), &scope)?),
            _ => None,
        };
        if spec.training.cache_features && parsed.method != Peft::from(Method::Head) {
            return Err(ModelError::Features(parsed.method.to_string()));
        }
        Ok(Self {
            layout: scope.shared().clone(),
            residual,
            whole: parsed.adapter.bytes(),
            payloads: if spec.scaffold_population().is_some() { 2 } else { 1 },
            method: parsed.method.to_string(),
            backbone_values: parsed.backbone.values,
            manifest: *manifest,
            checkpoint: parsed.files.checkpoint,
        })
    }

    /// Where `size` bytes are written: to memory where adapters travel in messages, else to a file.
    pub fn target(&self, bus: &Bus, spool: &Spool, size: u64) -> Result<Target, Unusable> {
        if self.is_held(bus, size) {
            return Ok(Target::Memory(Vec::with_capacity(usize::try_from(size).unwrap_or(0))));
        }
        Ok(Target::File(spool.file(size)?))
    }

    /// Whether adapters travel in messages, and are held in memory.
    pub fn fits_a_message(&self, bus: &Bus) -> bool {
        self.leaves_room(bus, self.layout.bytes())
    }

    /// What the message of an update takes, about, where nothing is encoded.
    pub fn update_bytes(&self, bus: &Bus) -> u64 {
        if self.fits_a_message(bus) { self.layout.bytes() * self.payloads } else { 0 }
    }

    /// Whether `size` bytes of what belongs to an adapter are held in memory: where adapters are, and it is no more than
    /// what a strategy keeps for each.
    pub fn is_held(&self, bus: &Bus, size: u64) -> bool {
        self.fits_a_message(bus) && size <= HELD * bus.max_payload() as u64
    }

    /// Whether an adapter of this size fits a message, with what goes beside it.
    pub fn leaves_room(&self, bus: &Bus, size: u64) -> bool {
        size + self.layout.bytes() * (self.payloads - 1) + ENVELOPE <= bus.max_payload() as u64
    }

    /// Zeros in the shape of the adapter: SCAFFOLD's control variate before any training.
    pub fn zeros(&self, bus: &Bus, spool: &Spool) -> Result<Adapter, ModelError> {
        let size = self.layout.bytes();
        if self.fits_a_message(bus) {
            return Ok(Adapter::Held(vec![0; usize::try_from(size).unwrap_or(0)].into()));
        }
        let file = spool.file(size)?;
        file.set_len(size).map_err(|source| spool.unusable(source))?;
        Ok(Adapter::Spooled(Arc::new(file)))
    }

    /// The adapter before any training.
    pub async fn initial_adapter(&self, bus: &Bus, spool: &Spool) -> Result<Adapter, ModelError> {
        let FileRef { digest, size, .. } = self.checkpoint;
        let limit = self.whole.saturating_add(checkpoint::HEADER_LIMIT);
        if size > limit {
            return Err(BusError::BlobTooLarge { digest, size, limit }.into());
        }
        let held = self.fits_a_message(bus);
        let (stored, file) = if held {
            (Adapter::Held(bus.get_blob(&digest, limit).await?.0), None)
        } else {
            let get = async |file| bus.get_blob_into(&digest, size, file).await;
            (spool.fetched(size, get).await??.0, Some(spool.file(self.layout.bytes())?))
        };
        let (layout, manifest) = (self.layout.clone(), self.manifest);
        let reading = tokio::task::spawn_blocking(move || match file {
            None => {
                let mut bytes = Vec::new();
                checkpoint::adapter(&mut *stored.reader(), &layout, &mut bytes)?;
                Ok(Adapter::Held(bytes.into()))
            }
            Some(file) => {
                checkpoint::adapter(&mut *stored.reader(), &layout, &mut &file)?;
                Ok(Adapter::Spooled(Arc::new(file)))
            }
        });
        reading.await?.map_err(|source| ModelError::Checkpoint { digest: manifest, source })
    }
}

/// What the LoRA factors of these artifacts do not hold of mean updates, where clients share all factors.
fn residual((digest, manifest): (&Digest, &Manifest), scope: &Scope) -> Result<Layout, ModelError> {
    let wrong = |source| ModelError::Manifest { digest: *digest, source };
    let residual = manifest.residual().map_err(wrong)?.ok_or(ModelError::NoResiduals)?;
    match residuals(scope.shared()) {
        Ok(Some(shared)) if shared == residual => Ok(residual),
        _ => Err(ModelError::LocalFactors),
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
