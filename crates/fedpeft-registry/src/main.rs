//! Serves names and versions of models over NATS.

use std::process::ExitCode;

use clap::Parser;
use fedpeft_registry::Registry;
use fedpeft_service::{Common, CommonArgs, Program};
use serde::{Deserialize, Serialize};

/// Model registry: keeps names and versions of training artifacts whose files lie in the NATS object store
///
/// Artifacts get here by `fedpeft models push` and are fetched by workers, both through the NATS server; the
/// registry itself holds no state, and any number of them may run. Try `nats req fedpeft.v1.api.models.list ''`.
#[derive(Debug, Parser, Serialize)]
#[command(version, max_term_width = 110)]
struct Args {
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
    #[serde(flatten)]
    common: Common,
}

impl AsRef<Common> for Config {
    fn as_ref(&self) -> &Common {
        &self.common
    }
}

fn main() -> ExitCode {
    Program::new("fedpeft-registry").run::<Args, Config, _>(async |_, context| {
        let registry = Registry::start(&context.bus).await?;
        context.set_ready(true);
        context.shutdown.cancelled().await;
        registry.stop().await;
        Ok(())
    })
}
