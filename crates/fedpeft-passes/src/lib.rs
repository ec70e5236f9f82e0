//! Shape inference, constant folding and operator fusion on ONNX graphs.
