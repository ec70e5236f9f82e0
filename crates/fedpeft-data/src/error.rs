//! What is wrong with a dataset or with what is asked of it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::partition::PartitionError;
use crate::read::IdxError;

/// What is wrong with a dataset or with what is asked of it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// An IDX file is wrong.
    #[error(transparent)]
    Idx(#[from] IdxError),
    /// The examples cannot be dealt out as asked.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// A file or folder cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file or folder does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A line of a table does not hold what it should.
    #[error("{}, line {line}: {reason}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Its line, counted from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
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
    #[error("classes must be between 1 and {most}, not {classes}")]
    Classes {
        /// Classes asked for.
        classes: u32,
        /// Most there can be.
        most: u32,
    },
    /// The data has other classes than the specification says.
    #[error("{} names {found} classes, but classes = {classes}: set classes, or list all of them in class_names", path.display())]
    ClassCount {
        /// The file or folder.
        path: PathBuf,
        /// Classes it names.
        found: usize,
        /// Classes of the specification.
        classes: u32,
    },
    /// The list of class names is wrong.
    #[error("class_names {reason}")]
    ClassNames {
        /// What is wrong.
        reason: String,
    },
    /// More held-out examples are asked for than there are.
    #[error("eval_examples = {asked}, but {} holds only {available} held-out examples: lower it, or 0 for all", path.display())]
    HeldOut {
        /// Where they come from.
        path: PathBuf,
        /// Examples asked for.
        asked: u32,
        /// Examples there are.
        available: usize,
    },
    /// The validation split would leave nothing to train on.
    #[error("validation_examples = {asked} leaves no training example: {} holds {available}", path.display())]
    Validation {
        /// Where they come from.
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
