//! Test harness: located assets, a real `nats-server`, a bad network in front of it, built service binaries.

mod assets;
mod binary;
mod certificates;
mod nats;
mod proxy;

pub use assets::{Assets, MissingAsset, assets};
pub use binary::{MissingBinary, locate_binary};
pub use certificates::{Certificates, Pair};
pub use nats::NatsServer;
pub use proxy::{Proxy, Way};
