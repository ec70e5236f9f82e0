//! Training and evaluation sessions on ONNX Runtime.

pub mod kernels;
