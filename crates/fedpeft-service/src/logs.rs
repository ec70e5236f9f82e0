//! Logs on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

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

/// Starts logging. A second call in one process changes nothing.
pub fn init(filter: &str, format: LogFormat) -> Result<(), InvalidFilter> {
    let parsed = EnvFilter::try_new(format!("{QUIET},{filter}"))
        .map_err(|error| InvalidFilter { filter: filter.into(), reason: error.to_string() })?;
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(())
}
