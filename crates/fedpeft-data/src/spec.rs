//! The `[data]` section of a configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::assets::asset_dir;
use crate::images::DataError;
use crate::partition::{Deal, PartitionSpec};

/// Which data, dealt out to whom. Every field has a default; unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSpec {
    /// Format of the files.
    pub kind: DataKind,
    /// Images to train and validate on; Fashion-MNIST of the asset cache when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_images: Option<PathBuf>,
    /// Their labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_labels: Option<PathBuf>,
    /// Held-out images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_images: Option<PathBuf>,
    /// Their labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_labels: Option<PathBuf>,
    /// Classes; labels are `0..classes`.
    pub classes: u32,
    /// Clients to deal training examples out to.
    pub clients: u32,
    /// Examples of each client; 0 deals all of them out.
    pub samples_per_client: u32,
    /// How they are dealt out.
    pub partition: PartitionSpec,
    /// Least examples of a client; a partition is redrawn until all have them.
    pub min_examples: u32,
    /// Held-out examples, drawn from the held-out images; 0 takes all.
    pub eval_examples: u32,
    /// Training images set aside for validation before anything is dealt out.
    pub validation_examples: u32,
    /// Seed of every choice above.
    pub seed: u64,
}

/// Format of the files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// IDX, plain or gzip.
    #[default]
    Idx,
}

impl Default for DataSpec {
    fn default() -> Self {
        Self {
            kind: DataKind::Idx,
            train_images: None,
            train_labels: None,
            test_images: None,
            test_labels: None,
            classes: 10,
            clients: 10,
            samples_per_client: 200,
            partition: PartitionSpec::default(),
            min_examples: 10,
            eval_examples: 1000,
            validation_examples: 0,
            seed: 0,
        }
    }
}

/// The four files of a dataset.
pub(crate) struct Files {
    pub train_images: PathBuf,
    pub train_labels: PathBuf,
    pub test_images: PathBuf,
    pub test_labels: PathBuf,
}

impl DataSpec {
    pub(crate) fn deal(&self) -> Deal {
        Deal {
            clients: self.clients,
            samples_per_client: self.samples_per_client,
            min_examples: self.min_examples,
            seed: self.seed,
        }
    }

    /// The files named, or those of the asset cache.
    pub(crate) fn files(&self) -> Result<Files, DataError> {
        let file = |given: &Option<PathBuf>, name: &str| match given {
            Some(path) => Ok(path.clone()),
            None => {
                let path = asset_dir().ok_or(DataError::NoAssets)?.join("data/fashion-mnist").join(name);
                if path.exists() { Ok(path) } else { Err(DataError::MissingAsset { path }) }
            }
        };
        Ok(Files {
            train_images: file(&self.train_images, "train-images-idx3-ubyte.gz")?,
            train_labels: file(&self.train_labels, "train-labels-idx1-ubyte.gz")?,
            test_images: file(&self.test_images, "t10k-images-idx3-ubyte.gz")?,
            test_labels: file(&self.test_labels, "t10k-labels-idx1-ubyte.gz")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_round_trip_and_refuse_the_unknown() {
        let spec: DataSpec = toml::from_str("clients = 4\npartition = { kind = \"iid\" }").unwrap();
        assert_eq!((spec.clients, spec.classes), (4, 10));
        assert_eq!(toml::from_str::<DataSpec>(&toml::to_string(&spec).unwrap()).unwrap(), spec);
        assert!(toml::from_str::<DataSpec>("client = 4").is_err());
        assert!(toml::from_str::<DataSpec>("kind = \"png\"").is_err());
    }
}
