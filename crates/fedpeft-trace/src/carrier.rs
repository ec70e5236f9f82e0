//! Trace contexts in message headers: [W3C Trace Context](https://www.w3.org/TR/trace-context/), `traceparent` alone.

use std::collections::HashMap;

use opentelemetry::{
    Context,
    propagation::TextMapPropagator,
    trace::{SpanContext, TraceContextExt},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Name of the header.
pub const TRACEPARENT: &str = "traceparent";
/// What version 00 of the header takes, with room for later ones.
const LONGEST: usize = 128;

/// The header for messages that the current span sends; nothing outside of an exported span.
pub fn traceparent() -> Option<String> {
    let context = Span::current().context();
    if !context.span().span_context().is_valid() {
        return None;
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// Where a message comes from, as its sender says: nobody believes more of it than where a span belongs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Origin(Option<SpanContext>);

impl Origin {
    /// Reads a `traceparent` header; one that is absent or malformed means nothing.
    pub fn read(header: Option<&str>) -> Self {
        let Some(header) = header.filter(|header| header.len() <= LONGEST) else { return Self(None) };
        let carrier = HashMap::from([(TRACEPARENT.to_owned(), header.to_owned())]);
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
        let origin = context.span().span_context().clone();
        Self(origin.is_valid().then_some(origin))
    }

    /// Makes `span` a child of the sender's. For messages of those who may give us work.
    pub fn adopt(&self, span: &Span) {
        if let Some(origin) = &self.0 {
            // It fails where traces are not exported.
            let _ = span.set_parent(Context::new().with_remote_span_context(origin.clone()));
        }
    }

    /// Makes `span` point to the sender's. For messages of those who may not say where our spans belong.
    pub fn link(&self, span: &Span) {
        if let Some(origin) = &self.0 {
            span.add_link(origin.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_others_mean_nothing() {
        let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let Origin(Some(context)) = Origin::read(Some(header)) else { panic!("not read") };
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(
            (context.span_id().to_string().as_str(), context.is_sampled()),
            ("b7ad6b7169203331", true)
        );
        let long = format!("{header}-{}", "0".repeat(LONGEST));
        for malformed in [
            "",
            "00",
            "garbage",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319z-b7ad6b7169203331-01",
            &long,
        ] {
            assert_eq!(Origin::read(Some(malformed)), Origin::default(), "{malformed}");
        }
        assert_eq!(Origin::read(None), Origin::default());
        assert_eq!(traceparent(), None);
    }
}
