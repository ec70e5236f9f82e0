//! The trace of a round.
//!
//! Its id is a hash of the run and the round, so that whoever takes a run over goes on with the trace of its open
//! round. The root span has an id of the same hash: phases are its children while nobody has made it yet, and the
//! owner that closes the round makes it, once, with the length of the whole round.

use std::{cell::Cell, time::SystemTime};

use fedpeft_protocol::{Digest, Round, RunId};
use opentelemetry::{
    Context, KeyValue, global,
    trace::{
        Span as _, SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
    },
};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Where one round of a run belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundTrace {
    run: RunId,
    round: Round,
    trace: TraceId,
}

impl RoundTrace {
    /// The trace of round `round` of the run that was created at `created_ms`: its id is the first 16 bytes of the
    /// SHA-256 of `fedpeft round trace`, run, `created_ms` and round, a line each; that of its root span is the last
    /// 8 of these. Runs of one name on different brokers, or after one another, have traces of their own.
    pub fn of(run: &RunId, created_ms: u64, round: Round) -> Self {
        let digest = Digest::of(format!("fedpeft round trace\n{run}\n{created_ms}\n{round}\n"));
        let (bytes, _) = digest.as_bytes().split_at(16);
        let trace = TraceId::from_bytes(bytes.try_into().unwrap_or([1; 16]));
        Self { run: run.clone(), round, trace }
    }

    /// Makes `span` a part of the round.
    pub fn adopt(&self, span: &Span) {
        if span.is_disabled() {
            return;
        }
        // Whether it is sampled is for the sampler to say, which knows the roots of rounds.
        let (flags, state) = (TraceFlags::SAMPLED, TraceState::NONE);
        let root = SpanContext::new(self.trace, root(self.trace), flags, true, state);
        let _ = span.set_parent(Context::new().with_remote_span_context(root));
    }

    /// Makes the root span, of a round that began at `started`, says `figures` of it, and ends now. With a `failure`
    /// the round came to nothing.
    pub fn close(&self, started: SystemTime, figures: &[(&'static str, f64)], failure: Option<&str>) {
        let tracer = global::tracer("fedpeft");
        let mut attributes = vec![
            KeyValue::new("fedpeft.run", self.run.to_string()),
            KeyValue::new("fedpeft.round", i64::from(self.round)),
        ];
        attributes.extend(figures.iter().map(|(name, value)| KeyValue::new(*name, *value)));
        let builder = tracer.span_builder("round").with_start_time(started).with_attributes(attributes);
        PRESET.set(Some(self.trace));
        let mut span = builder.start_with_context(&tracer, &Context::new());
        PRESET.set(None);
        if let Some(reason) = failure {
            span.set_status(Status::error(reason.to_owned()));
        }
        span.end();
    }
}

/// The root span of a trace that is a round's.
fn root(trace: TraceId) -> SpanId {
    let bytes = trace.to_bytes();
    SpanId::from_bytes(bytes[8..].try_into().unwrap_or([1; 8]))
}

/// Whether a span is the root of a round.
pub(crate) fn is_root(span: &SpanContext) -> bool {
    span.is_remote() && root(span.trace_id()) == span.span_id()
}

thread_local! {
    /// The trace whose root span is being made on this thread.
    static PRESET: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// Random ids, except for the roots of rounds.
#[derive(Debug, Default)]
pub(crate) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        PRESET.get().unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        PRESET.get().map_or_else(|| self.0.new_span_id(), root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_one_trace_and_no_other_round_has_it() {
        let run = |name: &str| RunId::new(name).unwrap();
        let trace = RoundTrace::of(&run("a"), 5, 1);
        assert_eq!(trace, RoundTrace::of(&run("a"), 5, 1));
        for other in [RoundTrace::of(&run("b"), 5, 1), RoundTrace::of(&run("a"), 6, 1)] {
            assert_ne!(trace.trace, other.trace);
        }
        assert_ne!(trace.trace, RoundTrace::of(&run("a"), 5, 2).trace);
        // The documented form, so that other programs can find the trace of a round.
        assert_eq!(trace.trace.to_string(), "2d1c5573c910151adb9d1218d0c55df9");
    }
}
