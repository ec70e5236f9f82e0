//! Logs on standard error.

use std::io::IsTerminal;

use fedpeft_trace::Exporting;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::LogFormat;

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("log filter {filter:?} is not valid: {reason}; use for instance `info` or `info,fedpeft_bus=debug`")]
pub struct InvalidFilter {
    filter: String,
    reason: String,
}

/// The client library announces every connection, as we do; a filter that names it overrides this.
const QUIET: &str = "async_nats=warn";

/// Starts logging, and traces where they are exported: what is logged does not change what is traced. A second call
/// in one process changes nothing.
pub fn init(filter: &str, format: LogFormat, traces: Option<&Exporting>) -> Result<(), InvalidFilter> {
    let parsed = EnvFilter::try_new(format!("{QUIET},{filter}"))
        .map_err(|error| InvalidFilter { filter: filter.into(), reason: error.to_string() })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let log = tracing_subscriber::registry().with(lines.with_filter(parsed));
    let started = log.with(traces.map(Exporting::layer)).try_init();
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(())
}
