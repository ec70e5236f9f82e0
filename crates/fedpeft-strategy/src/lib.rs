//! What a round computes, without a network: which clients it asks ([`cohort`]), what their updates come to
//! ([`mod@fold`]: sums in [`accumulator`], or [`clipped`] where noise is put on the sum, what a few clients that lie cannot
//! move far in [`robust`], means of low-rank updates rather than of their factors in [`lora`]) and what step the server makes
//! towards it ([`strategy`], [`fedopt`]).
//!
//! Everything here is deterministic to the byte: a cohort depends on the seed, the round and the set of
//! clients; a sum on the set of updates. Neither depends on the order in which anything arrived, so a round
//! that is folded again after a crash gives the same adapter.

pub mod accumulator;
pub mod buffered;
mod clip;
pub mod clipped;
pub mod cohort;
pub mod fedopt;
pub mod fold;
pub mod lora;
pub mod mean;
mod norm;
pub mod nova;
pub mod robust;
pub mod scaffold;
pub mod strategy;

pub use accumulator::{
    AccumulateError, Accumulator, BATCH, Claim, Encoded, Gathering, Spool, SpoolError, Weight, check_update,
    max_partial_bytes, partial_distance,
};
pub use clipped::ClippedSum;
pub use fold::{Closing, Fold, Rule};
pub use mean::Mean;
pub use norm::{distance, distance_spooled};
pub use robust::{Gathered, RobustRule};
pub use strategy::{FedAvg, Kept, Strategy, of_spec};
