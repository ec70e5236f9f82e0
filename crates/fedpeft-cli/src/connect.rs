//! Reaching the broker.

use std::{future::Future, path::PathBuf};

use anyhow::{Context as _, Result};
use fedpeft_bus::{Bus, BusConfig, Tls};

/// Default address: what `nats-server` listens on.
const DEFAULT_SERVER: &str = "nats://127.0.0.1:4222";

/// Where the broker is.
#[derive(Debug, clap::Args)]
pub struct Connection {
    /// Address of the NATS server, nats:// or tls://; several may be joined by commas.
    #[arg(long, value_name = "URL", env = "FEDPEFT_SERVER", hide_env_values = true, default_value = DEFAULT_SERVER)]
    server: String,
    /// NATS credentials file.
    #[arg(long, value_name = "FILE", env = "FEDPEFT_CREDS")]
    creds: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
}

/// How connections are encrypted.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsArgs {
    /// Authorities to believe, PEM [default: those of the system]. Any of these options makes TLS a must.
    #[arg(long, value_name = "FILE", env = "FEDPEFT_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// Our certificate, PEM, for a server that verifies its clients.
    #[arg(long, value_name = "FILE", env = "FEDPEFT_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Private key of our certificate, PEM.
    #[arg(long, value_name = "FILE", env = "FEDPEFT_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// Encrypt before the server's greeting: for a server with `handshake_first`.
    #[arg(long, env = "FEDPEFT_TLS_FIRST")]
    tls_first: bool,
}

impl From<TlsArgs> for Tls {
    fn from(args: TlsArgs) -> Self {
        Self { ca: args.tls_ca, cert: args.tls_cert, key: args.tls_key, first: args.tls_first }
    }
}

impl Connection {
    /// Connects and makes sure that streams and buckets exist.
    pub async fn open(self) -> Result<Bus> {
        open(&self.config()).await
    }

    /// What it says, for those who connect themselves.
    pub fn config(self) -> BusConfig {
        BusConfig { server: self.server, creds: self.creds, tls: self.tls.into(), ..named() }
    }
}

/// The configuration of connections of this program; what else it takes is the caller's.
pub fn named() -> BusConfig {
    BusConfig { name: "fedpeft".to_owned(), ..Default::default() }
}

/// Connects and makes sure that streams and buckets exist.
pub async fn open(config: &BusConfig) -> Result<Bus> {
    let bus = Bus::connect(config).await?;
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
