//! The client side of a run: one process that hosts one or many clients.
//!
//! Each client waits for tasks of its own ([`client`]); all of them share one [`engine`], a thread that
//! owns the backbone and trains for one client after another; while it computes for one, another may fetch and
//! send. Artifacts are pulled once and cached by digest. A task is acknowledged after its update is stored by the
//! broker: a worker that dies meanwhile gets the task again and goes on from its last checkpoint ([`state`]), and
//! an update published twice is stored once. What a client keeps from round to round of a run is in [`memory`].

mod alone;
mod client;
mod config;
mod engine;
mod examples;
mod faults;
mod keep;
mod labels;
mod local;
mod memory;
mod metrics;
mod presence;
mod retry;
mod roster;
mod scaffold;
mod secure;
mod seen;
mod serve;
mod spending;
mod state;
mod task;

pub use config::{Args, Config, ConfigError, DataSource, Split};
pub use serve::serve;
