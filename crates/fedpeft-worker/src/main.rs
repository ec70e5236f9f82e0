//! `fedpeft-worker`: hosts clients that train and evaluate on local data.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use fedpeft_service::Program;
use fedpeft_worker::{Args, Config, serve};

fn main() -> ExitCode {
    match Args::parse().check() {
        None => Program::new("fedpeft-worker").run::<Args, Config, _>(serve),
        // Nobody minds if it cannot be read.
        Some(Ok(found)) => {
            let _ = writeln!(io::stdout(), "{found}");
            ExitCode::SUCCESS
        }
        Some(Err(reason)) => {
            let _ = writeln!(io::stderr(), "error: {reason}");
            ExitCode::FAILURE
        }
    }
}
