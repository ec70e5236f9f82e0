//! The client side of a run: one process that hosts one or many clients.
//!
//! Each client waits for tasks of its own ([`client`]); all of them share one [`engine`], a thread that
//! owns the backbone and trains for one client after another. Artifacts are pulled once and cached by
//! digest. A task is acknowledged after its update is stored by the broker: a worker that
//! dies meanwhile gets the task again, and an update published twice is stored once.

mod client;
mod config;
mod engine;
mod examples;
mod metrics;
mod presence;
mod retry;
mod roster;
mod serve;
mod task;

pub use config::{Args, Config, ConfigError, DataSource, Split};
pub use serve::serve;
