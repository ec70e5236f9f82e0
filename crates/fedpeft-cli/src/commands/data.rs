//! `fedpeft data`: what the clients hold.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use fedpeft_data::{ClassTable, Federation};

use crate::{
    config::{DataOverrides, Document},
    output::{self, Output},
};

/// What to do with data.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print how many examples of which class each client holds.
    #[command(after_help = "\
Examples:
  fedpeft data partition --config run.toml
  fedpeft data partition --clients 10 --samples 200 --alpha 0.1 --seed 1
  fedpeft data partition --clients 10 --partition shards --json")]
    Partition {
        /// File whose [data] section is read.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        overrides: DataOverrides,
        #[command(flatten)]
        output: Output,
    },
}

/// Runs one of them.
pub fn run(command: Command) -> Result<()> {
    let Command::Partition { config, overrides, output } = command;
    let mut document = Document::read_or_empty(config.as_deref())?;
    overrides.apply(&mut document)?;
    let spec = document.data(fedpeft_data::asset_dir().as_deref())?;
    let federation = Federation::load(&spec)?;
    output.show(&federation.table(), human)
}

fn human(table: &ClassTable) -> String {
    let name = |class: u32| table.names.get(class as usize).cloned().unwrap_or_else(|| class.to_string());
    let classes: Vec<String> = (0..table.classes).map(name).collect();
    let header: Vec<&str> =
        std::iter::once("client \\ class").chain(classes.iter().map(String::as_str)).chain(["all"]).collect();
    let mut text = output::table(&header, 1..header.len());
    for row in &table.rows {
        text.add_row(cells(row.client.to_string(), &row.counts));
    }
    text.add_row(cells("all".to_owned(), &table.totals()));
    text.trim_fmt()
}

fn cells(name: String, counts: &[u64]) -> Vec<String> {
    let total: u64 = counts.iter().sum();
    std::iter::once(name).chain(counts.iter().chain([&total]).map(ToString::to_string)).collect()
}
