//! Reverse-mode differentiation of ONNX graphs into ONNX graphs.
