//! The worker binary against a real broker and the real ONNX Runtime, on a model of a few hundred values.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what fails here fails a test")]

mod features;
mod local;
mod pipelines;
mod private;
mod resume;
mod secure;
mod setup;
mod startup;
mod tasks;
mod texts;
