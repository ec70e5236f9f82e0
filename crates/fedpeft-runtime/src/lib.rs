//! Training and evaluation sessions on ONNX Runtime.
//!
//! [`Runtime`] loads the library, and [`Trainer`] trains and evaluates the adapter of an artifact folder on one
//! [`Device`]. On the processor, gradients and
//! optimizer steps run on the fused [`kernels`]. This crate knows no network.

mod adapter;
mod buffer;
mod check;
mod device;
mod error;
mod examples;
mod features;
mod frozen;
mod fuse;
mod graph;
pub mod kernels;
mod largest;
mod leaves;
mod library;
mod measured;
mod memory;
mod operators;
mod optimizer;
mod order;
mod parts;
mod private;
mod products;
mod residual;
mod schedule;
mod session;
mod source;
#[cfg(test)]
mod toy;
mod trainer;
mod weight;

pub use device::{ChosenDevice, Device, UnknownDevice};
pub use error::RuntimeError;
pub use examples::{Batch, Column, Examples, InMemory, Values};
pub use features::FeatureExtractor;
pub use library::Runtime;
pub use operators::DOMAIN as OPERATOR_DOMAIN;
pub use optimizer::Optimizer;
pub use order::OrderSeed;
pub use schedule::Schedule;
pub use session::{Kernels, SessionOptions, Shapes, Weights};
pub use trainer::{Evaluated, LocalTraining, OptimizerState, Snapshot, Standing, Stepped, Trained, Trainer};
