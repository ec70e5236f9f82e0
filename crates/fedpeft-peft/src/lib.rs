//! Parameter-efficient fine-tuning methods as graph surgery.
//!
//! A [`Method`] decides which tensors of a backbone are trained: the adapter. Places are found by structure
//! (the third input of a `Gemm` is a bias), never by an exporter's names. Every method also trains the
//! classification head that [`head`] attaches, as in Sun et al., arXiv 2210.01708.

pub mod head;
mod method;
mod select;

pub use head::{HEAD_BIAS, HEAD_WEIGHT, Pooling};
pub use method::{Method, UnknownMethod};
pub use select::{SelectError, select};
