//! Test harness: located assets, a real `nats-server`, built service binaries.

mod assets;
mod binary;
mod certificates;
mod nats;

pub use assets::{Assets, MissingAsset, assets};
pub use binary::{MissingBinary, locate_binary};
pub use certificates::{Certificates, Pair};
pub use nats::NatsServer;
