//! The model of a simulation: built, or taken as it is.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use fedpeft_artifacts::{ArtifactFolder, build, source_digest};
use fedpeft_protocol::Digest;

use super::programs::Places;
use crate::{
    config::{Build, Model, Source},
    view::{Sink, View},
};

/// The artifact folder to push; none where the registry has the model already.
pub fn prepare(model: &Model, places: &Places, sink: Sink) -> Result<Option<PathBuf>> {
    match &model.source {
        Source::Published {} => Ok(None),
        Source::Artifacts { artifacts } => {
            let folder = ArtifactFolder::open(artifacts)?;
            folder.verify()?;
            Ok(Some(artifacts.clone()))
        }
        Source::Build(options) => cached(options, &places.cache()?, sink).map(Some),
    }
}

/// Builds artifacts, unless the same were built before.
fn cached(options: &Build, cache: &Path, sink: Sink) -> Result<PathBuf> {
    let typed = options.options()?;
    let source = source_digest(options.path())?;
    let tokenizer = typed.text.as_ref().map(|text| source_digest(&text.tokenizer)).transpose()?;
    let key = (source, tokenizer, serde_json::to_value(options)?, builder()?);
    let folder = cache.join(Digest::of(serde_json::to_vec(&key)?).to_string());
    fs::create_dir_all(cache).with_context(|| format!("the cache {} cannot be made", cache.display()))?;
    // Simulations side by side build what they share once: a second build would replace what the first one pushes.
    let lock = folder.with_extension("lock");
    let context = || format!("{} cannot be locked", lock.display());
    let held = File::create(&lock).with_context(context)?;
    held.lock().with_context(context)?;
    if let Ok(built) = ArtifactFolder::open(&folder)
        && built.verify().is_ok()
    {
        return Ok(folder);
    }
    let view = View::new(0, sink);
    view.spin(format!("building artifacts from {}", options.path().display()));
    build(&typed, &folder)?;
    Ok(folder)
}

/// Artifacts that another build of this program made are not taken from the cache.
fn builder() -> Result<Digest> {
    let program = std::env::current_exe().and_then(File::open).and_then(Digest::of_reader);
    program.context("this program cannot be read")
}
