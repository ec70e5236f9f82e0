//! Serves what happens in runs as Prometheus metrics.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use clap::Parser;
use fedpeft_exporter::{Exporter, Limits};
use fedpeft_service::{Common, CommonArgs, Program};
use serde::{Deserialize, Serialize};

/// Prometheus exporter: turns the event stream of all runs into metrics at http://127.0.0.1:9464/metrics
///
/// It reads all stored events when it starts, so its counters survive it. It only reads: any number may run.
/// Give `--http 0.0.0.0:9464` to let other machines scrape it.
#[derive(Debug, Parser, Serialize)]
#[command(version, max_term_width = 110)]
struct Args {
    /// Runs to show; the one without news for longest is dropped first [default: 100]
    #[arg(long, env = "FEDPEFT_MAX_RUNS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_runs: Option<u32>,
    /// Rounds of each run to show one by one in fedpeft_round_bytes [default: 200]
    #[arg(long, env = "FEDPEFT_MAX_ROUNDS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_rounds: Option<u32>,
    /// Clients of each run to show by name in fedpeft_client_bytes, those with most bytes, and one for all others; 0 shows
    /// nothing of clients [default: 0]
    #[arg(long, env = "FEDPEFT_TOP_CLIENTS", value_name = "N", value_parser = clap::value_parser!(u32).range(..=1000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    top_clients: Option<u32>,
    #[command(flatten)]
    #[serde(flatten)]
    common: CommonArgs,
}

impl AsRef<CommonArgs> for Args {
    fn as_ref(&self) -> &CommonArgs {
        &self.common
    }
}

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default = "max_runs")]
    max_runs: u32,
    #[serde(default = "max_rounds")]
    max_rounds: u32,
    #[serde(default)]
    top_clients: u32,
    #[serde(flatten)]
    common: Common,
}

fn max_runs() -> u32 {
    100
}

fn max_rounds() -> u32 {
    200
}

impl AsRef<Common> for Config {
    fn as_ref(&self) -> &Common {
        &self.common
    }
}

const DEFAULT_HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

fn main() -> ExitCode {
    Program::new("fedpeft-exporter").default_http(DEFAULT_HTTP).run::<Args, Config, _>(
        async |config, context| {
            let limits = Limits {
                runs: config.max_runs as usize,
                rounds: config.max_rounds as usize,
                clients: config.top_clients as usize,
            };
            let exporter = Exporter::new(limits, &context.metrics)?;
            tokio::select! {
                ended = exporter.follow(&context.bus, || context.set_ready(true)) => ended?,
                () = context.shutdown.cancelled() => {}
            }
            Ok(())
        },
    )
}
