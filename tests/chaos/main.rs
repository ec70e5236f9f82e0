//! Faults of every kind against real processes and a real broker: the run ends, and what it has learned is
//! byte for byte what it would have learned without them.
//!
//! `cargo xtask chaos` runs the long schedule and prints a table of what each kind of fault cost.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed helper is a failed test, and its table is for people"
)]

mod broker;
mod clock;
mod disk;
mod inject;
mod model;
mod processes;
mod progress;
mod replay;
mod report;
mod schedule;
mod trial;
mod verdict;
mod world;

use std::env;

use trial::{Plan, trial};

/// One fault of each of eight kinds, for continuous integration.
#[tokio::test(flavor = "multi_thread")]
async fn a_few_faults_change_nothing() {
    let seed = number("FEDPEFT_CHAOS_SEED", 11);
    trial(Plan { seed, kinds: schedule::SHORT.into(), rounds: 16, epochs: 40, json: None }).await;
}

/// The schedule that `FEDPEFT_CHAOS_SEED` and `FEDPEFT_CHAOS_FAULTS` name.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a quarter of an hour: run `cargo xtask chaos`"]
async fn many_faults_change_nothing() {
    let (seed, faults) = (number("FEDPEFT_CHAOS_SEED", 1), number("FEDPEFT_CHAOS_FAULTS", 50));
    let kinds = schedule::deck(seed, faults as usize);
    // Each of the two runs has half of the faults, and two rounds for each.
    let rounds = u32::try_from(faults).unwrap() + 2;
    let json = env::var_os("FEDPEFT_CHAOS_JSON").map(Into::into);
    // With so many epochs a round takes about half a second.
    trial(Plan { seed, kinds, rounds, epochs: 100, json }).await;
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap())
}
