//! `fedpeft models`: artifacts in the registry.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Subcommand;
use fedpeft_artifacts::ArtifactFolder;
use fedpeft_protocol::{
    ModelName,
    api::{Empty, ModelList},
    model::ModelVersion,
    run::ModelRef,
};
use fedpeft_registry::{Cache, pull, push_folder};

use crate::{
    connect::{Connection, block_on},
    output::{self, Output},
    progress::Transfer,
};

/// What to do with models.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish an artifact folder as the next version of a model.
    #[command(
        after_help = "Example:\n  fedpeft models push vit-bias --name vit-bias --server nats://broker:4222"
    )]
    Push {
        /// Artifact folder.
        folder: PathBuf,
        /// Name of the model.
        #[arg(long)]
        name: ModelName,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// List all versions of all models.
    #[command(after_help = "Example:\n  fedpeft models list")]
    List {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Fetch a model into an artifact folder.
    #[command(after_help = "\
Examples:
  fedpeft models pull vit-bias -o vit-bias
  fedpeft models pull vit-bias@2 -o vit-bias-2")]
    Pull {
        /// Name, and version where it is not to be the newest.
        #[arg(value_name = "NAME[@VERSION]")]
        model: Named,
        /// Folder to write; it must not be there.
        #[arg(short, long = "out", value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
}

/// `NAME` or `NAME@VERSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named(ModelRef);

impl FromStr for Named {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, version) = match text.split_once('@') {
            None => (text, None),
            Some((name, version)) => {
                let number = version.parse().ok().filter(|number| *number >= 1);
                (name, Some(number.ok_or_else(|| anyhow!("version {version:?} is not a number from 1"))?))
            }
        };
        Ok(Self(ModelRef { name: name.parse()?, version }))
    }
}

/// Runs one of them.
pub fn run(command: Command) -> Result<()> {
    block_on(Box::pin(dispatch(command)))
}

async fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Push { folder, name, connection, output } => {
            // The broker need not be asked to find out that there is nothing to push.
            let opened = ArtifactFolder::open(&folder)?;
            let bus = connection.open().await?;
            let bar = Transfer::new();
            let pushed =
                push_folder(&bus, opened.path(), &name, |file, done, size| bar.show(file, done, size)).await;
            drop(bar);
            output.show(&pushed?, |model| format!("{}@{} is {}", model.name, model.number, model.manifest))
        }
        Command::List { connection, output } => {
            let list: ModelList = connection.open().await?.request("models.list", &Empty {}).await?;
            output.show(&list.models, |models| table(models))
        }
        Command::Pull { model, out, connection, output } => {
            let bus = connection.open().await?;
            let version: ModelVersion = bus.request("models.get", &model.0).await?;
            fetch(&bus, &version, &out).await?;
            output.show(&version, |model| format!("{}@{} is in {}", model.name, model.number, out.display()))
        }
    }
}

/// Fetches beside the destination and renames, so that it appears complete or not at all.
async fn fetch(bus: &fedpeft_bus::Bus, version: &ModelVersion, out: &Path) -> Result<()> {
    if out.exists() {
        bail!("{} is there already: give a folder that is not", out.display());
    }
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let context = || format!("{} cannot be written", out.display());
    fs::create_dir_all(parent).with_context(context)?;
    let staging =
        tempfile::Builder::new().prefix(".fedpeft-pull-").tempdir_in(parent).with_context(context)?;
    let bar = Transfer::new();
    let cache = Cache::new(staging.path());
    let pulled =
        pull(bus, &version.manifest, &cache, false, |file, done, size| bar.show(file, done, size)).await;
    drop(bar);
    fs::rename(&pulled?.folder, out).with_context(context)
}

fn table(models: &[ModelVersion]) -> String {
    let mut table = output::table(&["model", "version", "method", "files", "bytes", "manifest"], [1, 3, 4]);
    for model in models {
        let bytes = model.files.iter().map(|file| file.size).sum();
        table.add_row([
            model.name.to_string(),
            model.number.to_string(),
            model.method.clone(),
            model.files.len().to_string(),
            output::bytes(bytes),
            model.manifest.short(),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_carry_a_version() {
        let parsed =
            |text: &str| text.parse::<Named>().map(|named| (named.0.name.to_string(), named.0.version));
        assert_eq!(parsed("vit").unwrap(), ("vit".to_owned(), None));
        assert_eq!(parsed("vit@3").unwrap(), ("vit".to_owned(), Some(3)));
        for bad in ["", "vit@", "vit@0", "vit@x", "a.b", "@1"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
