//! The aggregator against a real broker. Clients are played by the tests: they take tasks and publish updates
//! as any program that speaks the protocol may.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod api;
mod crowds;
mod edges;
mod federation;
mod gigabyte;
mod keeping;
mod large;
mod modes;
mod owners;
mod pipelines;
mod rounds;
mod rules;
mod secure;
mod trouble;
mod updates;
