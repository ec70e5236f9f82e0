//! Shape inference, constant folding and operator fusion on ONNX graphs.
//!
//! An export carries arithmetic on shapes, operators decomposed into elementwise pieces and constants
//! computed again at every step. [`prepare`] turns it into the graph that differentiation wants: every size
//! but the batch known, `LayerNormalization` and `Gelu` whole, linear layers as one two-dimensional `Gemm`.
//!
//! The batch size stays symbolic: every dimension is a number or a multiple of the batch ([`Extent`]).

mod builder;
mod error;
mod extent;
mod fold;
mod fuse;
mod infer;
mod inputs;
mod lower;
mod prepare;
mod sink;

pub use builder::Builder;
pub use error::PassError;
pub use extent::{Extent, Type};
pub use fold::fold;
pub use infer::{DOMAIN, Types, infer_graph};
pub use inputs::InputDecl;
pub use prepare::{PrepareOptions, Prepared, prepare};
pub use sink::sink;
