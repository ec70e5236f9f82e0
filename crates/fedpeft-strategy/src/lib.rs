//! What a round computes, without a network: which clients it asks ([`cohort`]), how their updates add up
//! ([`accumulator`]) and what the next global adapter is ([`strategy`], [`fedopt`] for server optimizers, and [`buffered`] for
//! asynchronous rounds). What a few clients that lie cannot move far is in [`robust`], and how far an update may go in
//! [`clip`]. [`lora`] averages low-rank updates themselves, rather than their factors.
//!
//! Everything here is deterministic to the byte: a cohort depends on the seed, the round and the set of
//! clients; a sum on the set of updates. Neither depends on the order in which anything arrived, so a round
//! that is folded again after a crash gives the same adapter.

pub mod accumulator;
pub mod buffered;
pub mod clip;
pub mod cohort;
pub mod fedopt;
pub mod lora;
mod norm;
pub mod robust;
pub mod strategy;

pub use accumulator::{AccumulateError, Accumulator, Spool, SpoolError, Weight, check_update};
pub use clip::clip_into;
pub use norm::{distance, distance_spooled};
pub use robust::{Gathered, RobustRule};
pub use strategy::{FedAvg, Kept, Strategy, of_spec};
