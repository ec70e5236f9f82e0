//! ONNX models in memory: load, save, surgery.
//!
//! [`Model`] is the part of ONNX that FedPEFT works with: one graph of standard operators, named tensors,
//! and model-local functions. [`Model::load`] reads a file and the external data beside it, treating both as
//! untrusted; [`Model::save`] writes one. [`surgery`] cuts, prunes and sorts graphs; [`opset`] lifts older
//! operator sets to [`OPSET`].

mod convert;
mod error;
mod file;
mod ir;
pub mod opset;
mod proto;
pub mod surgery;
mod tensor;

pub use error::OnnxError;
pub use ir::{Attribute, Dim, Function, Graph, Model, Node, ValueInfo};
pub use tensor::{DType, Data, Tensor};

/// The operator set of every graph we write: the first with `Gelu`.
pub const OPSET: i64 = 20;
/// The IR version of every model we write: the one that goes with [`OPSET`], with functions.
pub const IR_VERSION: i64 = 9;
