//! `fedpeft-worker`: hosts clients that train and evaluate on local data.

use std::process::ExitCode;

use fedpeft_service::Program;
use fedpeft_worker::{Args, Config, serve};

fn main() -> ExitCode {
    Program::new("fedpeft-worker").run::<Args, Config, _>(serve)
}
