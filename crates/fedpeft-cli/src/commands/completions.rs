//! `fedpeft completions`.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

/// Which shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fedpeft completions bash > /etc/bash_completion.d/fedpeft
  fedpeft completions zsh  > ~/.zfunc/_fedpeft
  fedpeft completions fish > ~/.config/fish/completions/fedpeft.fish")]
pub struct Args {
    /// Shell that will read the script.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script for the command line `C`.
pub fn run<C: CommandFactory>(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut C::command(), "fedpeft", &mut script);
    crate::output::print(String::from_utf8_lossy(&script).trim_end())
}
