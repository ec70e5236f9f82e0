//! Requests and replies of the control API, services under [`crate::subject::API`].
//!
//! | subject | request | reply |
//! | --- | --- | --- |
//! | `fedpeft.v1.api.runs.create` | [`CreateRun`] | [`crate::run::RunRecord`] |
//! | `fedpeft.v1.api.runs.get` | [`RunRequest`] | [`crate::run::RunView`] |
//! | `fedpeft.v1.api.runs.list` | [`Empty`] | [`RunList`] |
//! | `fedpeft.v1.api.runs.cancel` | [`RunRequest`] | [`crate::run::RunRecord`] |
//! | `fedpeft.v1.api.runs.resume` | [`RunRequest`] | [`crate::run::RunRecord`] |
//! | `fedpeft.v1.api.models.publish` | [`PublishModel`] | [`crate::model::ModelVersion`] |
//! | `fedpeft.v1.api.models.get` | [`crate::run::ModelRef`] | [`crate::model::ModelVersion`] |
//! | `fedpeft.v1.api.models.list` | [`Empty`] | [`ModelList`] |
//!
//! Errors come as NATS service errors: a code (400 bad request, 404 not found, 409 conflict, 429 too many
//! requests, 500 internal) and one line.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Digest, ModelName, RunId, bounds,
    model::{FileEntry, ModelVersion},
    run::{RunRecord, RunSpec},
};

/// A request without arguments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}

/// Creates a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRun {
    /// Name of the run; made up by the service where absent. Creating a run that exists is a conflict.
    #[serde(default)]
    pub run: Option<RunId>,
    /// What it should do.
    pub spec: RunSpec,
}

/// Names a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The run.
    pub run: RunId,
}

/// All runs, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunList {
    /// Their durable states.
    pub runs: Vec<RunRecord>,
}

/// Publishes a version of a model whose blobs are already in the blob store. Publishing the same manifest
/// again returns the version it already has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishModel {
    /// Name.
    pub name: ModelName,
    /// PEFT method of the artifacts.
    #[serde(deserialize_with = "bounds::text::<256, _>")]
    pub method: String,
    /// Blob of `manifest.json`.
    pub manifest: Digest,
    /// Every file of the artifact folder.
    #[serde(deserialize_with = "bounds::list::<64, _, _>")]
    pub files: Vec<FileEntry>,
}

/// All versions of all models, by name and number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelList {
    /// The versions.
    pub models: Vec<ModelVersion>,
}
