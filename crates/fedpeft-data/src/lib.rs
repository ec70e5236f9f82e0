//! Dataset readers and federated partitioners.
//!
//! [`Federation::load`] reads the labelled examples described by a [`DataSpec`], images or texts, deals the
//! training examples out to clients by a seeded [`PartitionSpec`], and sets a validation split and held-out
//! examples aside. Each part is a [`ClientData`]. [`ClientData::prepare_images`] fits it to a model's [`Input`],
//! [`ClientData::prepare_texts`] makes tokens of it once, and [`Prepared::fill`] writes batches into the
//! caller's buffers.
//!
//! Every choice is a function of the data and the seed alone: the same specification gives the same
//! partition on every platform.

mod assets;
mod dataset;
mod draw;
mod error;
mod federation;
mod images;
mod labels;
mod names;
mod partition;
mod prepare;
mod read;
mod spec;
mod split;
mod table;

pub use assets::asset_dir;
pub use error::DataError;
pub use federation::{ClientData, Federation};
pub use labels::{IGNORED, LabelKind};
pub use partition::{Alpha, Partition, PartitionError, PartitionSpec};
pub use prepare::{BatchError, Column, FitError, Input, InputError, Prepared, TextInput, TokenColumn};
pub use read::IdxError;
pub use spec::{Columns, DataSpec, Fraction, HeldOut, IdxFiles, LabelSource, Source, Split};
pub use table::{ClassRow, ClassTable};
