//! The service side: names and versions over blobs.

use std::collections::BTreeSet;

use fedpeft_artifacts::{Manifest, manifest::MANIFEST_FILE};
use fedpeft_bus::{ApiError, Bus, BusError, Records, Service};
use fedpeft_protocol::{
    PROTOCOL_VERSION,
    api::{Empty, ModelList, PublishModel},
    model::{FileEntry, ModelVersion, is_safe_file_name},
    round::ByteKind,
    run::ModelRef,
};
use fedpeft_service::now_ms;

use crate::MANIFEST_LIMIT;

/// Most files of one artifact folder.
const MAX_FILES: usize = 64;

/// The running registry service.
pub struct Registry {
    service: Service,
}

impl Registry {
    /// Puts the service on the bus. Any number of processes may serve at once: versions are assigned by
    /// compare-and-set.
    pub async fn start(bus: &Bus) -> Result<Self, BusError> {
        let models = bus.models().await?;
        let mut service = bus.service("fedpeft-registry", "Models and their versions.").await?;
        let (publishing, getting, listing) =
            (Models { bus: bus.clone(), models: models.clone() }, models.clone(), models);
        service
            .endpoint("models.publish", move |request| publishing.clone().publish(request))
            .await?
            .endpoint("models.get", move |request| get(getting.clone(), request))
            .await?
            .endpoint("models.list", move |Empty {}| list(listing.clone()))
            .await?;
        Ok(Self { service })
    }

    /// Takes the service off the bus.
    pub async fn stop(self) {
        self.service.stop().await;
    }
}

#[derive(Clone)]
struct Models {
    bus: Bus,
    models: Records<ModelVersion>,
}

impl Models {
    async fn publish(self, request: PublishModel) -> Result<ModelVersion, ApiError> {
        self.check(&request).await?;
        loop {
            let versions = self.models.list(request.name.as_str()).await?;
            if let Some(same) = versions.iter().find(|version| version.value.manifest == request.manifest) {
                return Ok(same.value.clone());
            }
            let newest = versions.iter().map(|version| version.value.number).max().unwrap_or(0);
            let number = newest
                .checked_add(1)
                .ok_or_else(|| ApiError::conflict(format!("model {} has too many versions", request.name)))?;
            let version = ModelVersion {
                version: PROTOCOL_VERSION,
                name: request.name.clone(),
                number,
                method: request.method.clone(),
                manifest: request.manifest,
                files: request.files.clone(),
                published_ms: now_ms(),
            };
            match self.models.create(&format!("{}.{number}", request.name), &version).await {
                Ok(_) => {
                    tracing::info!(model = %version.name, number, manifest = %version.manifest, "published");
                    return Ok(version);
                }
                // Another publish took the number; what it published may be this.
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What is published can be pulled: every file is stored, and the manifest names exactly these files.
    async fn check(&self, request: &PublishModel) -> Result<(), ApiError> {
        check_names(&request.files)?;
        let manifest = self.manifest(request).await?;
        let found = manifest.method.to_string();
        if found != request.method {
            let declared = &request.method;
            let message = format!("method is {declared:?}, the manifest says {found:?}");
            return Err(ApiError::bad_request(message));
        }
        check_same_files(request, &manifest)?;
        for file in &request.files {
            match self.bus.blob_size(&file.digest).await? {
                Some(size) if size == file.size => {}
                Some(size) => {
                    let message = format!("file {} has {size} bytes, not {}", file.name, file.size);
                    return Err(ApiError::bad_request(message));
                }
                None => {
                    let message =
                        format!("file {} is not stored: blob {} is missing", file.name, file.digest);
                    return Err(ApiError::bad_request(message));
                }
            }
        }
        Ok(())
    }

    async fn manifest(&self, request: &PublishModel) -> Result<Manifest, ApiError> {
        let bytes = match self.bus.get_blob(&request.manifest, MANIFEST_LIMIT).await {
            Ok((bytes, _)) => bytes,
            Err(
                error @ (BusError::NoBlob { .. } | BusError::BlobTooLarge { .. } | BusError::Corrupt { .. }),
            ) => return Err(ApiError::bad_request(format!("{MANIFEST_FILE}: {error}"))),
            Err(error) => return Err(error.into()),
        };
        Manifest::from_json(&bytes).map_err(ApiError::bad_request)
    }
}

fn check_names(files: &[FileEntry]) -> Result<(), ApiError> {
    if files.len() > MAX_FILES {
        return Err(ApiError::bad_request(format!("{} files are more than {MAX_FILES}", files.len())));
    }
    let mut names = BTreeSet::new();
    for file in files {
        if !is_safe_file_name(&file.name) {
            let shown: String = file.name.chars().take(80).collect();
            return Err(ApiError::bad_request(format!("{shown:?} is not a file name")));
        }
        if !names.insert(&file.name) {
            return Err(ApiError::bad_request(format!("file {} is given twice", file.name)));
        }
    }
    Ok(())
}

fn check_same_files(request: &PublishModel, manifest: &Manifest) -> Result<(), ApiError> {
    let files = manifest.all_files().into_iter();
    let listed = files.map(|(file, kind)| (file.name.as_str(), file.digest, kind));
    let expected: BTreeSet<_> =
        listed.chain([(MANIFEST_FILE, request.manifest, ByteKind::Artifacts)]).collect();
    let given: BTreeSet<_> =
        request.files.iter().map(|file| (file.name.as_str(), file.digest, file.kind)).collect();
    if let Some((name, ..)) = expected.difference(&given).next() {
        let message = format!("the manifest names the file {name}, which is missing or another one");
        return Err(ApiError::bad_request(message));
    }
    if let Some((name, ..)) = given.difference(&expected).next() {
        return Err(ApiError::bad_request(format!("the manifest does not name the file {name}")));
    }
    Ok(())
}

async fn get(models: Records<ModelVersion>, request: ModelRef) -> Result<ModelVersion, ApiError> {
    let name = &request.name;
    if let Some(number) = request.version {
        let found = models.get(&format!("{name}.{number}")).await?;
        let missing = || ApiError::not_found(format!("model {name} has no version {number}"));
        return found.map(|(version, _)| version).ok_or_else(missing);
    }
    let versions = models.list(name.as_str()).await?;
    let newest = versions.into_iter().map(|entry| entry.value).max_by_key(|version| version.number);
    newest.ok_or_else(|| ApiError::not_found(format!("there is no model {name}")))
}

async fn list(models: Records<ModelVersion>) -> Result<ModelList, ApiError> {
    let mut models: Vec<_> = models.list("").await?.into_iter().map(|entry| entry.value).collect();
    models.sort_by(|a, b| (&a.name, a.number).cmp(&(&b.name, b.number)));
    Ok(ModelList { models })
}
