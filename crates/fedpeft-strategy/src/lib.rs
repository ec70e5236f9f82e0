//! What a round computes, without a network: which clients it asks ([`cohort`]), how their updates add up
//! ([`accumulator`], or [`clipped`] where noise is put on the sum) and what the next global adapter is ([`strategy`],
//! [`fedopt`] for server optimizers, and [`buffered`] for asynchronous rounds).
//!
//! Everything here is deterministic to the byte: a cohort depends on the seed, the round and the set of
//! clients; a sum on the set of updates. Neither depends on the order in which anything arrived, so a round
//! that is folded again after a crash gives the same adapter.

pub mod accumulator;
pub mod buffered;
pub mod clipped;
pub mod cohort;
pub mod fedopt;
mod norm;
pub mod strategy;

pub use accumulator::{AccumulateError, Accumulator, Spool, SpoolError, Weight};
pub use clipped::ClippedSum;
pub use norm::{distance, distance_spooled};
pub use strategy::{FedAvg, Kept, Strategy, of_spec};
