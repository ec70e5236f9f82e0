//! Secure aggregation: a server learns the sum of its clients' updates, and nothing else of them.
//!
//! The protocol is that of Bonawitz et al. (CCS 2017, IACR eprint 2017/281), in the variant against active adversaries, with
//! the sparse graph of Bell et al. (CCS 2020, eprint 2020/704) as an option. Each pair of clients agrees on a mask that one
//! adds and the other subtracts, so that they cancel in the sum; each client adds one of its own as well, and shares the seeds
//! of both among others, so that those of clients that drop out, or of those that do not, can be taken off: never both.
//!
//! | stage | a client sends | the server then knows |
//! | --- | --- | --- |
//! | [advertise](Stage::Advertise) | two X25519 keys, signed | whom to introduce to whom |
//! | [share](Stage::Share) | shares of its two secrets, encrypted for its neighbours | who can be recovered |
//! | [mask](Stage::Mask) | its update under masks | the masked sum |
//! | [confirm](Stage::Confirm) | a signature of who is in the sum | that all were told the same |
//! | [unmask](Stage::Unmask) | one share for each neighbour | the sum |
//!
//! Everything here is a pure state machine without network and clock: [`Client`] answers [`Request`]s with [`Message`]s,
//! [`Server`] folds messages and makes requests. [`Params`] are what both agree on, [`Plan`] chooses graph and threshold,
//! [`Encoding`] makes integers of updates. `docs/secure-aggregation.md` has the threat model and measurements.

mod client;
mod encoding;
mod graph;
mod keys;
mod members;
mod message;
mod params;
mod plan;
mod seal;
mod server;
mod shamir;
mod sign;
mod words;

#[cfg(test)]
mod tests;

pub use client::{Client, MaskedUpdate, Refusal};
pub use ed25519_dalek::SigningKey;
pub use encoding::{EncodeError, Encoded, Encoding, LEAST_NOISE, MOST_NOISE, Noise, Rounding, Sum};
pub use graph::Graph;
pub use keys::CryptoError;
pub use members::{Member, Members};
pub use message::{Answer, Ask, Message, Request, Stage, VERSION, WireError};
pub use params::{MAX_COHORT, MAX_VALUES, Params, ParamsError, Peer, Session};
pub use plan::Plan;
pub use server::{Closed, Server, ServerError, Taken};
