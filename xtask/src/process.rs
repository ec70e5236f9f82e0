//! Running programs.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Cargo, in the workspace root.
pub fn cargo(arguments: &[&str]) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(arguments);
    command
}

/// The workspace root.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Runs to the end, with this terminal; fails when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    eprintln!("> {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Becomes the program: its signals, its messages and its exit code are then its own. Returns only when it
/// cannot be started.
pub fn become_program(command: &mut Command) -> anyhow::Error {
    let line = line(command);
    eprintln!("> {line}");
    anyhow::Error::new(command.exec()).context(format!("cannot start `{line}`"))
}

/// Whether a program answers to these arguments.
pub fn answers(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = [program].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
