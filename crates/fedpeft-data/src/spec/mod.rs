//! The `[data]` section of a configuration.

mod keys;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::assets::asset_dir;
use crate::error::DataError;
use crate::labels::LabelKind;
use crate::partition::{Deal, PartitionSpec};

use keys::Keys;

/// Which data, dealt out to whom. Every field but the paths of the examples has a default; unknown fields and
/// those of another kind are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Keys", into = "Keys")]
pub struct DataSpec {
    /// Where the examples come from.
    pub source: Source,
    /// Classes, or labels of which an example may have several; class labels are `0..classes`.
    pub classes: u32,
    /// What the classes are called, in order; empty where the data itself says.
    pub class_names: Vec<String>,
    /// Clients to deal training examples out to.
    pub clients: u32,
    /// Examples of each client; 0 deals all of them out.
    pub samples_per_client: u32,
    /// How they are dealt out.
    pub partition: PartitionSpec,
    /// Least examples of a client; a partition is redrawn until all have them.
    pub min_examples: u32,
    /// Held-out examples, drawn from those there are; 0 takes all.
    pub eval_examples: u32,
    /// Training examples set aside for validation before anything is dealt out.
    pub validation_examples: u32,
    /// Share of its examples that each client holds back from training to evaluate its own model on, the same of
    /// every class; none where nothing is said. They count in `samples_per_client` and `min_examples`.
    pub client_holdout: Option<Fraction>,
    /// Seed of every choice above.
    pub seed: u64,
}

/// Where examples come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Gray images in IDX files, plain or gzip; Fashion-MNIST of the asset cache where none is named.
    Idx(IdxFiles),
    /// PNG or JPEG files, one folder per class.
    ImageFolder {
        /// Folders that hold a folder per class.
        split: Split,
        /// Height and width that images are scaled and cropped to when they are read.
        image_size: u32,
    },
    /// Text files, one folder per class.
    TextFolder(Split),
    /// Texts in a table with a header line.
    Csv {
        /// The files.
        split: Split,
        /// Which columns.
        columns: Columns,
        /// What separates columns.
        delimiter: char,
    },
    /// Texts in JSON objects, one a line.
    Jsonl {
        /// The files.
        split: Split,
        /// Which fields.
        columns: Columns,
    },
}

/// The four files of an IDX dataset.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IdxFiles {
    /// Images to train and validate on.
    pub train_images: Option<PathBuf>,
    /// Their labels.
    pub train_labels: Option<PathBuf>,
    /// Held-out images.
    pub test_images: Option<PathBuf>,
    /// Their labels.
    pub test_labels: Option<PathBuf>,
}

/// What is trained on and what is held out.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// Examples to train and validate on.
    pub train: PathBuf,
    /// Held-out examples.
    pub test: HeldOut,
}

/// Where held-out examples come from.
#[derive(Debug, Clone, PartialEq)]
pub enum HeldOut {
    /// A source of their own.
    Path(PathBuf),
    /// This share of the training source, the same of every class.
    Fraction(Fraction),
}

/// A number strictly between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fraction(f64);

impl Fraction {
    /// Checks the range.
    pub fn new(value: f64) -> Option<Self> {
        (value > 0.0 && value < 1.0).then_some(Self(value))
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// Columns of a table, or fields of objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    /// The text.
    pub text: String,
    /// What it is labelled with.
    pub labels: LabelSource,
}

/// Where labels come from.
#[derive(Debug, Clone, PartialEq)]
pub enum LabelSource {
    /// A class by name or number.
    Class {
        /// Its column.
        column: String,
    },
    /// Any number of labels by name or number: a list, or text with a separator.
    MultiLabel {
        /// Their column.
        column: String,
        /// What separates them.
        separator: String,
    },
    /// Real numbers, one per column.
    Regression {
        /// Their columns.
        columns: Vec<String>,
    },
    /// The tokens of the text itself: every token is to be predicted from those before it.
    Tokens,
}

impl Default for DataSpec {
    fn default() -> Self {
        Self {
            source: Source::Idx(IdxFiles::default()),
            classes: 10,
            class_names: Vec::new(),
            clients: 10,
            samples_per_client: 200,
            partition: PartitionSpec::default(),
            min_examples: 10,
            eval_examples: 1000,
            validation_examples: 0,
            client_holdout: None,
            seed: 0,
        }
    }
}

/// What the files of Fashion-MNIST are called, in the order of [`IdxFiles`].
const FASHION_MNIST: [&str; 4] = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
];

/// Where they lie in the asset cache.
const FASHION_MNIST_FOLDER: &str = "data/fashion-mnist";

impl IdxFiles {
    fn each_mut(&mut self) -> [&mut Option<PathBuf>; 4] {
        [&mut self.train_images, &mut self.train_labels, &mut self.test_images, &mut self.test_labels]
    }

    /// The files named, or those of the asset cache.
    pub(crate) fn located(&self) -> Result<[PathBuf; 4], DataError> {
        let given = [&self.train_images, &self.train_labels, &self.test_images, &self.test_labels];
        let file = |index: usize| match given[index] {
            Some(path) => Ok(path.clone()),
            None => {
                let folder = asset_dir().ok_or(DataError::NoAssets)?.join(FASHION_MNIST_FOLDER);
                let path = folder.join(FASHION_MNIST[index]);
                if path.exists() { Ok(path) } else { Err(DataError::MissingAsset { path }) }
            }
        };
        Ok([file(0)?, file(1)?, file(2)?, file(3)?])
    }
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

    /// What examples are labelled with.
    pub fn label_kind(&self) -> LabelKind {
        match &self.source {
            Source::Idx(_) | Source::ImageFolder { .. } | Source::TextFolder(_) => {
                LabelKind::Classes(self.classes)
            }
            Source::Csv { columns, .. } | Source::Jsonl { columns, .. } => match &columns.labels {
                LabelSource::Class { .. } => LabelKind::Classes(self.classes),
                LabelSource::MultiLabel { .. } => LabelKind::MultiLabel(self.classes),
                LabelSource::Regression { columns } => LabelKind::Regression(columns.len() as u32),
                LabelSource::Tokens => LabelKind::Tokens,
            },
        }
    }

    /// Replaces every path that is named by where it leads.
    pub fn locate<E>(&mut self, mut locate: impl FnMut(&Path) -> Result<PathBuf, E>) -> Result<(), E> {
        let mut replace = |path: &mut PathBuf| -> Result<(), E> {
            *path = locate(path)?;
            Ok(())
        };
        match &mut self.source {
            Source::Idx(files) => files.each_mut().into_iter().flatten().try_for_each(replace),
            Source::ImageFolder { split, .. }
            | Source::TextFolder(split)
            | Source::Csv { split, .. }
            | Source::Jsonl { split, .. } => {
                replace(&mut split.train)?;
                if let HeldOut::Path(path) = &mut split.test {
                    replace(path)?;
                }
                Ok(())
            }
        }
    }

    /// Names the files that are not named: those of Fashion-MNIST in the asset cache `assets`.
    pub fn name_default_files(&mut self, assets: &Path) {
        if let Source::Idx(files) = &mut self.source {
            for (file, name) in files.each_mut().into_iter().zip(FASHION_MNIST) {
                file.get_or_insert_with(|| assets.join(FASHION_MNIST_FOLDER).join(name));
            }
        }
    }
}
