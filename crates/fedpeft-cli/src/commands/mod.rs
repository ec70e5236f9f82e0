//! One file per group of commands.

pub mod artifacts;
pub mod completions;
