//! From the environment to an exporter.

use std::{env, time::Duration};

use opentelemetry::{KeyValue, global, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::Subscriber;
use tracing_subscriber::{Layer, filter, registry::LookupSpan};

use crate::{TARGET, client::Client, round::Ids, sampling::Rounds};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// Path of traces behind an endpoint.
const PATH: &str = "/v1/traces";
/// Longest that a request takes, unless the environment says otherwise: OpenTelemetry's default.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest that a program which ends waits for its last spans to be taken.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// What a program says of itself, and where its spans go.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Name of the program: that of the service, unless `OTEL_SERVICE_NAME` gives another.
    pub program: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Base URL of the collector; where absent, that of the environment.
    pub endpoint: Option<String>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The endpoint is none that we can reach.
    #[error(
        "{origin}: {endpoint:?} is not an http:// address; give that of a collector, such as http://127.0.0.1:4318 (TLS to anywhere else is the collector's)"
    )]
    Endpoint {
        /// Where it was set.
        origin: &'static str,
        /// The endpoint.
        endpoint: String,
    },
    /// The exporter cannot be made of what the environment says.
    #[error("traces: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Spans on their way to a collector.
#[derive(Debug)]
pub struct Exporting {
    provider: SdkTracerProvider,
}

/// Starts to export, where an endpoint is configured. Variables are those of OpenTelemetry: `OTEL_SDK_DISABLED`,
/// `OTEL_TRACES_EXPORTER`, `OTEL_EXPORTER_OTLP_*`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
/// `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`.
pub fn start(settings: &Settings) -> Result<Option<Exporting>, TraceError> {
    let Some(endpoint) = endpoint(settings.endpoint.as_deref(), variable)? else { return Ok(None) };
    let timeout =
        variable("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT").or_else(|| variable("OTEL_EXPORTER_OTLP_TIMEOUT"));
    let timeout = timeout.and_then(|text| text.parse().ok()).map_or(TIMEOUT, Duration::from_millis);
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Client::new(timeout))
        .with_timeout(timeout)
        .with_endpoint(endpoint)
        .build()?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_id_generator(Ids::default())
        .with_sampler(Rounds::from_environment())
        .with_resource(resource(settings))
        .build();
    global::set_tracer_provider(provider.clone());
    Ok(Some(Exporting { provider }))
}

impl Exporting {
    /// What makes spans of [`crate::span!`] leave, with our warnings on them.
    pub fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(&self) -> impl Layer<S> + use<S> {
        let ours = |metadata: &tracing::Metadata<'_>| {
            let is_warning =
                *metadata.level() <= tracing::Level::WARN && metadata.target().starts_with("fedpeft");
            if metadata.is_span() { metadata.target() == TARGET } else { is_warning }
        };
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("fedpeft"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(filter::filter_fn(ours))
    }

    /// Sends what is left, for some seconds at most.
    pub fn finish(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(LAST_SPANS) {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Address of the collector, path included.
fn endpoint(
    given: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, TraceError> {
    let is_disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if is_disabled || variable("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none") {
        return Ok(None);
    }
    let base = |base: &str| format!("{}{PATH}", base.trim_end_matches('/'));
    let found = match given {
        Some(given) => Some(("--otlp-endpoint", base(given))),
        None => match variable(TRACES_ENDPOINT) {
            Some(full) => Some((TRACES_ENDPOINT, full)),
            None => variable(ENDPOINT).map(|found| (ENDPOINT, base(&found))),
        },
    };
    match found {
        Some((origin, endpoint)) if !endpoint.starts_with("http://") => {
            Err(TraceError::Endpoint { origin, endpoint })
        }
        found => Ok(found.map(|(_, endpoint)| endpoint)),
    }
}

fn resource(settings: &Settings) -> Resource {
    let builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", settings.version))
        .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())));
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_named = variable("OTEL_SERVICE_NAME").is_some() || attributes.contains("service.name=");
    if is_named { builder.build() } else { builder.with_service_name(settings.program).build() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(given: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        endpoint(given, lookup).unwrap()
    }

    #[test]
    fn endpoints_are_found_where_opentelemetry_has_them() {
        assert_eq!(found(None, &[]), None);
        let base = (ENDPOINT, "http://a:4318/");
        let full = (TRACES_ENDPOINT, "http://b:4318/x");
        assert_eq!(found(None, &[base]).as_deref(), Some("http://a:4318/v1/traces"));
        assert_eq!(found(None, &[base, full]).as_deref(), Some("http://b:4318/x"));
        assert_eq!(found(Some("http://c:1"), &[base, full]).as_deref(), Some("http://c:1/v1/traces"));
        assert_eq!(found(None, &[base, ("OTEL_SDK_DISABLED", "TRUE")]), None);
        assert_eq!(found(Some("http://c:1"), &[("OTEL_TRACES_EXPORTER", "none")]), None);
        let error = endpoint(Some("https://c"), |_| None).unwrap_err().to_string();
        assert!(error.starts_with("--otlp-endpoint") && error.lines().count() == 1, "{error}");
    }
}
