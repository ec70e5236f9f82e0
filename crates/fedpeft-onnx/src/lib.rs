//! ONNX models in memory: load, save, surgery.
