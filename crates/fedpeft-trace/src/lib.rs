//! Distributed traces. One round is one trace, across the aggregator, the messages and the workers; it leaves by
//! OTLP where an endpoint is configured, and costs nothing where none is.
//!
//! | file | what |
//! | --- | --- |
//! | `round` | the trace of a round, the same for every owner of its run |
//! | `carrier` | contexts in message headers, as W3C `traceparent` |
//! | `sampling` | a round is sampled whole or not at all |
//! | `export` | what the environment configures, and the batches that go out |
//! | `client` | HTTP to the collector |
//!
//! Spans are made by [`span!`]. They are no part of the log, whose filter does not concern them.

mod carrier;
mod client;
mod export;
mod round;
mod sampling;

pub use carrier::{Origin, TRACEPARENT, traceparent};
pub use export::{Exporting, Settings, TraceError, start};
pub use round::RoundTrace;
#[doc(hidden)]
pub use tracing;
pub use tracing::Instrument;

/// Target of every span of ours: by it the exporter knows them, and logs leave them out.
pub const TARGET: &str = "fedpeft::trace";

/// A span, as `span!("train", fedpeft.client = %client)`. It is disabled, and free, unless traces are exported.
#[macro_export]
macro_rules! span {
    ($name:expr $(, $($fields:tt)*)?) => {
        $crate::tracing::span!(target: "fedpeft::trace", $crate::tracing::Level::TRACE, $name $(, $($fields)*)?)
    };
}
