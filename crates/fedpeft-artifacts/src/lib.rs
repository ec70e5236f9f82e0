//! Builds, stores and reads training artifacts.

pub mod manifest;

pub use manifest::Manifest;
