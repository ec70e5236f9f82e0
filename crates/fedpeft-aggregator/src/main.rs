//! The `fedpeft-aggregator` program.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser;
use fedpeft_aggregator::{Aggregator, EdgeOptions, EdgeRounds, Options};
use fedpeft_bus::{Bus, BusConfig, Tls};
use fedpeft_privacy::NoiseSecret;
use fedpeft_protocol::ClientId;
use fedpeft_service::{Common, CommonArgs, Program};
use serde::{Deserialize, Serialize};

/// Runs the rounds of federated fine-tuning.
///
/// The aggregator samples a cohort of clients for each round, sends them the global adapter, folds their
/// updates into the next one and stores it. It keeps everything in the NATS server: stop it at any moment,
/// start it again, and every run goes on where it stood. Several may run side by side; each run is driven by
/// one of them, and taken over by another about ten seconds after its death.
#[derive(Parser, Serialize)]
#[command(name = "fedpeft-aggregator", version, after_long_help = AFTER_HELP)]
struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    common: CommonArgs,
    /// Folder for adapters that do not fit a message while a round is added up: room for two of them, for two to four more
    /// with a server optimizer, and for all updates of a round with a robust aggregation, on a disk
    /// [default: $TMPDIR, else /var/tmp]
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    spool: Option<PathBuf>,
    /// File with 64 hex digits that the noise and the samples of private runs are drawn by; the same one for all aggregators, so
    /// that a round that is committed again after a crash has the same noise [default: a secret of each process]
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    noise_secret: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    edge: EdgeArgs,
}

/// Options that make an aggregator a client of another one.
#[derive(clap::Args, Serialize)]
#[command(next_help_heading = "Edge options")]
struct EdgeArgs {
    /// NATS server of an aggregator above: this one then works for it, with the clients that it finds at --server
    #[arg(
        long,
        env = "FEDPEFT_UPSTREAM",
        hide_env_values = true,
        value_name = "URL",
        requires = "upstream_client"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<String>,
    /// Name of the client that this aggregator is there
    #[arg(long, env = "FEDPEFT_UPSTREAM_CLIENT", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_client: Option<String>,
    /// NATS credentials file for --upstream, those of a client
    #[arg(long, env = "FEDPEFT_UPSTREAM_CREDS", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_creds: Option<PathBuf>,
    /// Authorities to believe at --upstream, PEM
    #[arg(long, env = "FEDPEFT_UPSTREAM_TLS_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_tls_ca: Option<PathBuf>,
    /// Our certificate for --upstream, PEM; needs --upstream-tls-key
    #[arg(long, env = "FEDPEFT_UPSTREAM_TLS_CERT", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_tls_cert: Option<PathBuf>,
    /// Private key of --upstream-tls-cert, PEM
    #[arg(long, env = "FEDPEFT_UPSTREAM_TLS_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_tls_key: Option<PathBuf>,
    /// Encrypt before the greeting of --upstream [default: false]
    #[arg(long, env = "FEDPEFT_UPSTREAM_TLS_FIRST", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_tls_first: Option<bool>,
    /// Clients that must be present here for the edge to take part [default: 1]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    edge_min_clients: Option<u32>,
    /// Updates without which the edge sends no sum [default: half of its clients]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    edge_quorum: Option<u32>,
    /// Seconds its clients have for a round, at most [default: nine tenths of what the aggregator above gives]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    edge_deadline: Option<f64>,
}

const AFTER_HELP: &str = "\
It needs a NATS server with JetStream and answers on these subjects, in JSON or MessagePack:

  fedpeft.v1.api.runs.create   {\"run\": \"demo\", \"spec\": {\"model\": {\"name\": \"vit\"}, \"rounds\": 10, \"cohort\": 4}}
  fedpeft.v1.api.runs.get      {\"run\": \"demo\"}
  fedpeft.v1.api.runs.list     {}
  fedpeft.v1.api.runs.cancel   {\"run\": \"demo\"}
  fedpeft.v1.api.runs.resume   {\"run\": \"demo\"}

Examples:
  nats-server -js &
  fedpeft-aggregator --server nats://127.0.0.1:4222 --http 127.0.0.1:9465
  fedpeft-aggregator --spool /data/fedpeft-spool
  fedpeft-aggregator --server nats://127.0.0.1:4223 --upstream nats://root:4222 --upstream-client edge-a
  openssl rand -hex 32 > noise.secret && chmod 600 noise.secret && fedpeft-aggregator --noise-secret noise.secret
  fedpeft run submit run.toml
  nats req fedpeft.v1.api.runs.list '{}'

Exit status: 0 after SIGTERM or SIGINT, 1 if it cannot start, 2 for wrong arguments.";

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    common: Common,
    spool: Option<PathBuf>,
    noise_secret: Option<PathBuf>,
    #[serde(flatten)]
    edge: EdgeConfig,
}

#[derive(Deserialize)]
struct EdgeConfig {
    upstream: Option<String>,
    upstream_client: Option<String>,
    upstream_creds: Option<PathBuf>,
    upstream_tls_ca: Option<PathBuf>,
    upstream_tls_cert: Option<PathBuf>,
    upstream_tls_key: Option<PathBuf>,
    #[serde(default)]
    upstream_tls_first: bool,
    edge_min_clients: Option<u32>,
    edge_quorum: Option<u32>,
    edge_deadline: Option<f64>,
}

impl AsRef<CommonArgs> for Args {
    fn as_ref(&self) -> &CommonArgs {
        &self.common
    }
}

impl AsRef<Common> for Config {
    fn as_ref(&self) -> &Common {
        &self.common
    }
}

fn main() -> ExitCode {
    Program::new("fedpeft-aggregator").run::<Args, Config, _>(async |config, context| {
        let noise_secret = config.noise_secret.as_deref().map(secret).transpose()?;
        let edge = edge(config.edge).await?;
        let options = Options { spool: config.spool, noise_secret, edge };
        let aggregator = Aggregator::start(&context.bus, options).await?;
        context.set_ready(true);
        Ok(aggregator.run(context.shutdown).await?)
    })
}

/// Connects to the aggregator above, if there is one.
async fn edge(config: EdgeConfig) -> anyhow::Result<Option<EdgeOptions>> {
    let Some(server) = config.upstream else { return Ok(None) };
    let name =
        config.upstream_client.context("--upstream needs --upstream-client, the name of this edge there")?;
    let client = ClientId::new(name).context("--upstream-client")?;
    let deadline = config.edge_deadline;
    if let Some(seconds) = deadline.filter(|seconds| !seconds.is_finite() || *seconds <= 0.0) {
        anyhow::bail!("--edge-deadline is {seconds}: it is a positive number of seconds");
    }
    let tls = Tls {
        ca: config.upstream_tls_ca,
        cert: config.upstream_tls_cert,
        key: config.upstream_tls_key,
        first: config.upstream_tls_first,
    };
    let upstream = BusConfig { server, creds: config.upstream_creds, tls, name: "fedpeft-aggregator".into() };
    let upstream = Bus::connect(&upstream).await.context("upstream")?;
    upstream.ensure_topology().await.context("upstream")?;
    let rounds = EdgeRounds {
        min_clients: config.edge_min_clients.unwrap_or(1),
        quorum: config.edge_quorum,
        deadline_seconds: deadline,
    };
    Ok(Some(EdgeOptions { upstream, client, rounds }))
}

/// Reads the secret; its file never appears in a message with what is in it.
fn secret(path: &Path) -> anyhow::Result<NoiseSecret> {
    let name = path.display();
    let text =
        std::fs::read_to_string(path).with_context(|| format!("noise secret {name} cannot be read"))?;
    NoiseSecret::from_hex(text.trim())
        .with_context(|| format!("noise secret {name}: make one with `openssl rand -hex 32 > {name}`"))
}
