//! End-to-end tests: the programs as users run them, a real broker, the real runtime and backbone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

mod bytes;
mod dashboards;
mod doctor;
mod exact;
mod experiment;
mod export;
mod failures;
mod inputs;
mod kubernetes;
mod personal;
mod pipelines;
mod python;
mod ranks;
mod report;
mod scaffold;
mod secure;
mod secured;
mod services;
mod simulate;
mod stability;
mod support;
mod traces;
mod tree;
mod verified;
mod watch;
