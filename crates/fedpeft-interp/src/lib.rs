//! A slow, exact reference evaluator of ONNX operators in f64.
//!
//! Operators mean what they mean in operator set 20. Real numbers of every width are computed in `f64` and
//! integers of every width in `i64`; only [`Value::to_tensor`] narrows. That makes the evaluator a constant
//! folder whose results are correctly rounded, and a reference smooth enough for finite differences.
//!
//! [`eval_node`] applies one operator, [`eval_graph`] a model; [`Interpreter`] evaluates one model often.
//! Nodes may come from a stranger: whatever is wrong with one is an [`InterpError`], never a panic, and no
//! result may have more than [`MAX_ELEMENTS`] elements.

mod call;
mod error;
mod graph;
mod ops;
mod shape;
mod value;

pub use error::InterpError;
pub use graph::{Interpreter, eval_graph};
pub use ops::{
    eval_node,
    resize::{Coordinates, Interpolation, Nearest, resize_matrix},
    supports,
};
pub use shape::MAX_ELEMENTS;
pub use value::Value;
