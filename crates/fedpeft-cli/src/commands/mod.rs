//! One file per group of commands.

pub mod artifacts;
pub mod auth;
pub mod completions;
pub mod data;
pub mod doctor;
pub mod experiment;
pub mod export;
pub mod man;
pub mod models;
pub mod privacy;
pub mod report;
pub mod run;
mod targets;
