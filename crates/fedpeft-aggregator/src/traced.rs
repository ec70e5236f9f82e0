//! What a run leaves in traces: each phase of a round is a span under the root of the round, and the owner that
//! closes the round makes the root.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedpeft_protocol::{
    Round,
    run::{OpenRound, RunRecord},
};
use fedpeft_trace::{RoundTrace, span};
use tracing::Span;

use crate::report::Report;

/// The trace of a round of this run.
fn of(record: &RunRecord, round: Round) -> RoundTrace {
    RoundTrace::of(&record.run, record.created_ms, round)
}

/// A phase of a round that this aggregator drives for itself.
pub(crate) fn phase(record: &RunRecord, round: Round, name: &str) -> Span {
    let span = part(record, round, name);
    of(record, round).adopt(&span);
    span
}

/// A phase of a round that belongs to the current span: that of an edge, to the task from upstream.
pub(crate) fn part(record: &RunRecord, round: Round, name: &str) -> Span {
    let (run, epoch) = (&record.run, record.epoch);
    span!("phase", otel.name = name, fedpeft.run = %run, fedpeft.round = round, fedpeft.epoch = epoch)
}

/// When a round began.
pub(crate) fn began(open: &OpenRound) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(open.opened_ms)
}

/// The end of a round that was announced.
pub(crate) fn close(record: &RunRecord, began: SystemTime, report: &Report) {
    let mut figures = vec![
        ("fedpeft.clients", report.clients.iter().len() as f64),
        ("fedpeft.bytes_up", report.bytes_up as f64),
        ("fedpeft.bytes_down", report.bytes_down as f64),
        ("fedpeft.train_loss", report.train_loss),
    ];
    figures.extend(report.loss.map(|loss| ("fedpeft.loss", loss)));
    figures.extend(report.accuracy.map(|accuracy| ("fedpeft.accuracy", accuracy)));
    of(record, report.round).close(began, &figures, None);
}

/// The end of a round that failed.
pub(crate) fn fail(record: &RunRecord, reason: &str) {
    if let Some(open) = &record.open {
        of(record, open.round).close(began(open), &[], Some(reason));
    }
}
