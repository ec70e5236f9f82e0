//! The `fedpeft-aggregator` program.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser;
use fedpeft_aggregator::{Aggregator, Options};
use fedpeft_privacy::NoiseSecret;
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
        let options = Options { spool: config.spool, noise_secret };
        let aggregator = Aggregator::start(&context.bus, options).await?;
        context.set_ready(true);
        aggregator.run(context.shutdown).await;
        Ok(())
    })
}

/// Reads the secret; its file never appears in a message with what is in it.
fn secret(path: &Path) -> anyhow::Result<NoiseSecret> {
    let name = path.display();
    let text =
        std::fs::read_to_string(path).with_context(|| format!("noise secret {name} cannot be read"))?;
    NoiseSecret::from_hex(text.trim())
        .with_context(|| format!("noise secret {name}: make one with `openssl rand -hex 32 > {name}`"))
}
