//! A labelled image set in memory, one byte per pixel.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::idx::{IdxError, read_images, read_labels};
use crate::partition::PartitionError;

/// What is wrong with a dataset or with what is asked of it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file is wrong.
    #[error(transparent)]
    Idx(#[from] IdxError),
    /// The examples cannot be dealt out as asked.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// Images and labels do not belong together.
    #[error("{} holds {images} images but {} holds {labels} labels", images_path.display(), labels_path.display())]
    Count {
        /// File of the images.
        images_path: PathBuf,
        /// File of the labels.
        labels_path: PathBuf,
        /// Images there are.
        images: usize,
        /// Labels there are.
        labels: usize,
    },
    /// A label names no class.
    #[error("{}: label {label} of example {example} is not among the {classes} classes 0..{classes}", path.display())]
    Label {
        /// File of the labels.
        path: PathBuf,
        /// Position of the example.
        example: usize,
        /// Its label.
        label: u8,
        /// Classes there are.
        classes: u32,
    },
    /// The specification asks for no or too many classes.
    #[error("classes must be between 1 and 256, not {0}: labels are single bytes")]
    Classes(u32),
    /// More held-out examples are asked for than there are.
    #[error("eval_examples = {asked}, but {} holds only {available} examples", path.display())]
    HeldOut {
        /// File of the images.
        path: PathBuf,
        /// Examples asked for.
        asked: u32,
        /// Examples there are.
        available: usize,
    },
    /// The validation split would leave nothing to train on.
    #[error("validation_examples = {asked} leaves no training example: {} holds {available}", path.display())]
    Validation {
        /// File of the images.
        path: PathBuf,
        /// Examples asked for.
        asked: u32,
        /// Examples there are.
        available: usize,
    },
    /// Training and held-out images differ in size.
    #[error("training images are {train:?} pixels (rows, columns) but held-out images {test:?}")]
    Sizes {
        /// Rows and columns of the training images.
        train: (usize, usize),
        /// Rows and columns of the held-out images.
        test: (usize, usize),
    },
    /// No dataset is named and the environment names no place to look for the default one.
    #[error("no dataset given and no asset cache found: set FEDPEFT_ASSETS or name the files in [data]")]
    NoAssets,
    /// A file of the default dataset is not in the asset cache.
    #[error("{} is missing: run `cargo xtask assets`, or name the files in [data]", path.display())]
    MissingAsset {
        /// Where it is looked for.
        path: PathBuf,
    },
}

/// Gray images of one size with a label each.
#[derive(Debug)]
pub struct Images {
    height: usize,
    width: usize,
    classes: u32,
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl Images {
    /// Reads images and labels from IDX files. Labels must lie in `0..classes`.
    pub fn read_idx(images_path: &Path, labels_path: &Path, classes: u32) -> Result<Self, DataError> {
        if classes == 0 || classes > 256 {
            return Err(DataError::Classes(classes));
        }
        let raw = read_images(images_path)?;
        let labels = read_labels(labels_path)?;
        let count = raw.pixels.len() / (raw.height * raw.width);
        if count != labels.len() {
            return Err(DataError::Count {
                images_path: images_path.to_owned(),
                labels_path: labels_path.to_owned(),
                images: count,
                labels: labels.len(),
            });
        }
        if let Some((example, label)) =
            labels.iter().copied().enumerate().find(|(_, label)| u32::from(*label) >= classes)
        {
            return Err(DataError::Label { path: labels_path.to_owned(), example, label, classes });
        }
        Ok(Self { height: raw.height, width: raw.width, classes, pixels: raw.pixels, labels })
    }

    /// Examples there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Rows and columns of an image.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// Classes; labels are `0..classes`.
    pub fn classes(&self) -> u32 {
        self.classes
    }

    /// The labels, in the order of the images.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The pixels of one image, row by row.
    pub fn pixels(&self, example: usize) -> Option<&[u8]> {
        let len = self.height * self.width;
        let start = example.checked_mul(len)?;
        self.pixels.get(start..start.checked_add(len)?)
    }
}
