//! What every service binary shares: configuration, logs, health and metrics endpoints, shutdown.
//!
//! A service is a [`Program`]: its `main` names it and hands over one async function, which gets its
//! configuration and a [`Context`] with a connected bus, and returns when [`Context::shutdown`] is
//! cancelled.

mod clock;
pub mod config;
mod http;
pub mod logs;
pub mod process;
mod program;
mod shutdown;
mod traffic;

pub use clock::now_ms;
pub use config::{Common, CommonArgs, ConfigError, LogFormat};
pub use program::{Context, Program};
pub use shutdown::on_signals;
pub use tokio_util::sync::CancellationToken;
