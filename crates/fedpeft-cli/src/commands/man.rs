//! `fedpeft man`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{CommandFactory, ValueHint};

/// Where to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fedpeft man -o ~/.local/share/man/man1 && man fedpeft-run-submit")]
pub struct Args {
    /// Folder for a page for each command, fedpeft-run-submit.1 and so on.
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    output: PathBuf,
}

/// Writes the pages of the command line `C`.
pub fn run<C: CommandFactory>(args: &Args) -> Result<()> {
    let folder = args.output.display();
    fs::create_dir_all(&args.output).with_context(|| format!("folder {folder} cannot be made"))?;
    clap_mangen::generate_to(C::command(), &args.output)
        .with_context(|| format!("manual pages cannot be written to {folder}"))?;
    crate::output::print(format!("manual pages are in {folder}"))
}
