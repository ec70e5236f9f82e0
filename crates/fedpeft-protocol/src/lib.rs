//! Subjects, messages and versions of the FedPEFT wire protocol.
//!
//! This crate knows no broker: it names things ([`subject`], [`id`]), describes them ([`run`], [`round`],
//! [`event`], [`model`], [`pipeline`], [`presence`], [`secure`]) and turns them into bytes and back ([`wire`]). Every type here is
//! what a stranger may send us, so every identifier is validated when it is built and every decode is
//! bounded and typed.

mod aggregation;
pub mod api;
mod bounds;
pub mod digest;
mod dp_sgd;
mod eligibility;
pub mod event;
pub mod id;
pub mod ledger;
mod mode;
pub mod model;
pub mod pipeline;
pub mod presence;
mod privacy;
pub mod round;
pub mod run;
mod schedule;
pub mod secure;
mod stability;
mod strategy;
pub mod subject;
mod training;
mod validate;
pub mod wire;

pub use digest::Digest;
pub use id::{ClientId, Epoch, ModelName, Round, RunId};

/// Version of the wire protocol. It is the `v1` of every subject and travels in every envelope.
pub const PROTOCOL_VERSION: u32 = 1;
