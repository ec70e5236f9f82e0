//! Prometheus exporter of the event stream.

fn main() {}
