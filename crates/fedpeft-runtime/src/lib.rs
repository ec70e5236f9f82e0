//! Training and evaluation sessions on ONNX Runtime.
