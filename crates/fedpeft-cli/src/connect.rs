//! Reaching the broker.

use std::{future::Future, path::PathBuf};

use anyhow::{Context as _, Result};
use fedpeft_bus::{Bus, BusConfig};

/// Default address: what `nats-server` listens on.
const DEFAULT_SERVER: &str = "nats://127.0.0.1:4222";

/// Where the broker is.
#[derive(Debug, clap::Args)]
pub struct Connection {
    /// Address of the NATS server.
    #[arg(long, value_name = "URL", env = "FEDPEFT_SERVER", default_value = DEFAULT_SERVER)]
    server: String,
    /// NATS credentials file.
    #[arg(long, value_name = "FILE", env = "FEDPEFT_CREDS")]
    creds: Option<PathBuf>,
}

impl Connection {
    /// Connects and makes sure that streams and buckets exist.
    pub async fn open(self) -> Result<Bus> {
        open(self.server, self.creds).await
    }
}

/// Connects to `server` and makes sure that streams and buckets exist.
pub async fn open(server: String, creds: Option<PathBuf>) -> Result<Bus> {
    let bus = Bus::connect(&BusConfig { server, creds, name: "fedpeft".to_owned() }).await?;
    bus.ensure_topology().await?;
    Ok(bus)
}

/// Runs an asynchronous command to its end.
pub fn block_on<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no threads can be started")?;
    runtime.block_on(command)
}
