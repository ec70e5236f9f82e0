//! The frame of a service's `main`.

use std::{io::Write, net::SocketAddr, process::ExitCode};

use clap::Parser;
use fedpeft_bus::Bus;
use fedpeft_trace::Settings;
use prometheus::{IntGaugeVec, Opts, Registry};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Common, CommonArgs},
    http::{self, Pages, Readiness},
    logs,
    process::ProcessMetrics,
    shutdown,
    traffic::TrafficMetrics,
};

/// A service binary.
///
/// ```no_run
/// # use clap::Parser; use serde::{Serialize, Deserialize}; use fedpeft_service::*;
/// #[derive(Parser, Serialize)]
/// struct Args { #[command(flatten)] #[serde(flatten)] common: CommonArgs }
/// impl AsRef<CommonArgs> for Args { fn as_ref(&self) -> &CommonArgs { &self.common } }
///
/// #[derive(Deserialize)]
/// struct Config { #[serde(flatten)] common: Common }
/// impl AsRef<Common> for Config { fn as_ref(&self) -> &Common { &self.common } }
///
/// fn main() -> std::process::ExitCode {
///     Program::new("fedpeft-thing").run::<Args, Config, _>(async |config, context| {
///         context.set_ready(true);
///         context.shutdown.cancelled().await;
///         Ok(())
///     })
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Program {
    name: &'static str,
    http: Option<SocketAddr>,
}

/// What a service works with.
#[derive(Clone)]
pub struct Context {
    /// The bus, with all streams and buckets in place.
    pub bus: Bus,
    /// Cancelled by SIGTERM and SIGINT: finish what must be finished and return.
    pub shutdown: CancellationToken,
    /// Metrics served at `/metrics`; register your own.
    pub metrics: Registry,
    /// Where `/metrics` is served, if it is.
    pub http: Option<SocketAddr>,
    ready: Readiness,
}

impl Context {
    /// Says whether the service does its work, for `/readyz`.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(ready);
    }
}

impl Program {
    /// A service of this name.
    pub fn new(name: &'static str) -> Self {
        Self { name, http: None }
    }

    /// Serve HTTP here unless told otherwise.
    pub fn default_http(mut self, address: SocketAddr) -> Self {
        self.http = Some(address);
        self
    }

    /// Parses arguments, starts logs, HTTP and bus, and runs `body` until it returns. Whatever fails is one
    /// line on standard error and exit status 1.
    pub fn run<A, C, F>(self, body: F) -> ExitCode
    where
        A: Parser + Serialize + AsRef<CommonArgs>,
        C: DeserializeOwned + AsRef<Common>,
        F: AsyncFnOnce(C, Context) -> anyhow::Result<()>,
    {
        match self.try_run::<A, C, F>(&A::parse(), body) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                fail(&error);
                ExitCode::FAILURE
            }
        }
    }

    fn try_run<A, C, F>(self, args: &A, body: F) -> anyhow::Result<()>
    where
        A: Parser + Serialize + AsRef<CommonArgs>,
        C: DeserializeOwned + AsRef<Common>,
        F: AsyncFnOnce(C, Context) -> anyhow::Result<()>,
    {
        let config: C = config::load(args, args.as_ref().config.as_deref())?;
        let common = config.as_ref().clone();
        let endpoint = common.otlp_endpoint.clone();
        let settings = Settings { program: self.name, version: env!("CARGO_PKG_VERSION"), endpoint };
        let traces = fedpeft_trace::start(&settings)?;
        logs::init(&common.log, common.log_format, traces.as_ref())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(Box::pin(self.serve(config, common, body)));
        // A blocking call that hangs must not keep the process.
        runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        if let Some(traces) = traces {
            traces.finish();
        }
        result
    }

    async fn serve<C, F>(self, config: C, common: Common, body: F) -> anyhow::Result<()>
    where
        F: AsyncFnOnce(C, Context) -> anyhow::Result<()>,
    {
        let shutdown = shutdown::on_signals()?;
        let address = common.http.or(self.http);
        let listener = match address {
            Some(address) => Some(http::listen(address).await?),
            None => None,
        };
        let bus = Bus::connect(&common.bus(self.name)).await?;
        bus.ensure_topology().await?;
        let http = listener.as_ref().map(|listener| listener.local_addr()).transpose()?;
        let metrics = self.metrics(&bus)?;
        let context = Context { bus, shutdown, metrics, http, ready: Readiness::default() };
        // The pages outlive the body: a probe during shutdown gets an answer.
        let pages = tokio::spawn(serve_pages(listener, context.clone()));
        tracing::info!(
            program = self.name,
            version = env!("CARGO_PKG_VERSION"),
            server = context.bus.server(),
            http = http.map(tracing::field::display),
            "started"
        );
        let result = body(config, context.clone()).await;
        context.set_ready(false);
        context.bus.drain().await;
        pages.abort();
        result
    }

    fn metrics(&self, bus: &Bus) -> anyhow::Result<Registry> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessMetrics::new()?))?;
        registry.register(Box::new(TrafficMetrics::new(bus.clone())?))?;
        let help = "Version of the running program; always 1.";
        let build = IntGaugeVec::new(Opts::new("fedpeft_build_info", help), &["program", "version"])?;
        build.with_label_values(&[self.name, env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        Ok(registry)
    }
}

async fn serve_pages(listener: Option<tokio::net::TcpListener>, context: Context) {
    let Some(listener) = listener else { return };
    let pages = Pages { bus: context.bus, ready: context.ready, metrics: context.metrics };
    if let Err(error) = http::serve(listener, pages).await {
        tracing::error!(%error, "HTTP endpoints ended");
    }
}

/// The one line a failed start leaves, with its causes.
fn fail(error: &anyhow::Error) {
    let line = format!("{error:#}").lines().collect::<Vec<_>>().join(" ");
    // Nothing is left to do if standard error is closed.
    let _ = writeln!(std::io::stderr(), "error: {line}");
}
