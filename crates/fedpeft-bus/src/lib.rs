//! NATS and JetStream behind one handle, the [`Bus`]: tasks, updates and events as durable streams, blobs
//! by digest, typed records with compare-and-set, request-reply services. Every publish and every delivery
//! says how many bytes it took ([`Measured`]).
//!
//! A broker that goes away is normal: the connection comes back by itself, consumers are recreated where
//! they stopped, and publishes are repeated under one deduplication id until the broker has stored them.

mod accounts;
mod admission;
mod backoff;
mod blobs;
mod connect;
mod error;
mod events;
mod follow;
mod identity;
mod inbox;
mod ledger;
mod measure;
mod newest;
mod overflow;
mod publish;
mod pull;
mod purge;
mod records;
#[cfg(feature = "local-server")]
pub mod server;
mod service;
mod tasks;
mod tls;
mod topology;
mod updates;

pub use admission::Limits;
pub use backoff::Backoff;
pub use blobs::{RecentBlobs, Stored, UploadKey};
pub use connect::{Bus, BusConfig};
pub use error::{ApiError, BusError};
pub use events::{Events, Place};
pub use inbox::{TaskDelivery, Tasks};
pub use ledger::{Counts, Ledger, PackedCounts};
pub use measure::{Measured, Traffic};
pub use purge::{Mark, Stale};
pub use records::{Change, Entry, Lease, Records, Revision, Watch};
pub use service::Service;
pub use tasks::StoredTask;
pub use tls::Tls;
pub use topology::{CLIENT_TTL, LEASE_TTL};
pub use updates::{UpdateDelivery, Updates};
