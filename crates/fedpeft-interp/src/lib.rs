//! A slow, exact reference evaluator of ONNX operators in f64.
