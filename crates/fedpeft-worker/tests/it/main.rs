//! The worker binary against a real broker and the real ONNX Runtime, on a model of a few hundred values.

mod setup;
mod startup;
mod tasks;
