//! Dataset readers and federated partitioners.
//!
//! [`Federation::load`] reads a labelled image set described by a [`DataSpec`], deals the training file out
//! to clients by a seeded [`PartitionSpec`], and sets a validation split and held-out examples aside. Each
//! part is a [`ClientData`]; [`ClientData::prepare`] fits it to a model's [`Input`] and
//! [`Prepared::fill_batch`] writes normalised batches into the caller's buffers.
//!
//! Every choice is a function of the data and the seed alone: the same specification gives the same
//! partition on every platform.

mod assets;
mod draw;
mod federation;
mod idx;
mod images;
mod partition;
mod prepare;
mod spec;
mod table;

pub use assets::asset_dir;
pub use federation::{ClientData, Federation};
pub use idx::IdxError;
pub use images::{DataError, Images};
pub use partition::{Alpha, Partition, PartitionError, PartitionSpec};
pub use prepare::{BatchError, Input, InputError, Prepared};
pub use spec::{DataKind, DataSpec};
pub use table::{ClassRow, ClassTable};
