//! Runs the rounds of federated fine-tuning: the service behind `fedpeft-aggregator`.
//!
//! ```text
//!             +------------------------------ next round ------------------------------+
//!             v                                                                        |
//!  pending -> select -> broadcast -> collect -> commit -> evaluate ----------------> (rounds left?)
//!               |           |           |          |                                   | no
//!               |           |           |          +- failed: storage                  v
//!               |           |           +- failed: below quorum                     completed
//!               +-----------+- waiting for clients, for ever
//! ```
//!
//! Each phase is one file, with its ways out in its first lines. What is true at any moment is in durable
//! records ([`fedpeft_protocol::run::RunRecord`], changed by compare-and-set only) and in the stream of
//! updates, which keeps a round's updates until the round is committed. A process holds nothing that it could
//! not rebuild from them, and continues a run wherever its last owner left it.
//!
//! An aggregator may itself be a client of another one: see [`EdgeOptions`].
//!
//! Any number of aggregators may run. Each run has one owner, who holds its lease and writes under the
//! fencing token it drew when it took the run; an owner that lost either stops at once.

mod admit;
mod api;
mod checkpoint;
mod clients;
mod counted;
mod drive;
mod edge;
mod encoding;
mod events;
mod lease;
mod members;
mod model;
mod phase;
mod privacy;
mod record;
mod report;
mod retention;
mod round;
mod secure;
mod spool;
mod stop;
mod supervisor;
mod sweep;
mod takeover;
mod traced;

pub use edge::{EdgeOptions, EdgeRounds};
pub use supervisor::{Aggregator, Options, StartError};
