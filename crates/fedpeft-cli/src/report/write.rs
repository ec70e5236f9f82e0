//! A report as a file.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use super::{Report, page, rows};
use crate::output;

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Everything, for programs.
    Json,
    /// One line per round, for spreadsheets.
    Csv,
    /// One page with plots, for people: it needs nothing else, and may be sent and kept.
    Html,
}

impl Format {
    /// The format that a file's name asks for; JSON where it has no ending.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            None | Some("json") => Ok(Self::Json),
            Some("csv") => Ok(Self::Csv),
            Some("html" | "htm") => Ok(Self::Html),
            Some(other) => {
                bail!("a report cannot be written as .{other}: end the name with .html, .json or .csv")
            }
        }
    }
}

impl Report {
    /// The report as text.
    pub fn text(&self, format: Format) -> Result<String> {
        match format {
            Format::Json => Ok(serde_json::to_string_pretty(self)? + "\n"),
            Format::Csv => Ok(rows::by_round(self).csv()?),
            Format::Html => page::html(self),
        }
    }

    /// Writes the report to `path`, whole or not at all; `-` is the standard output.
    pub fn write(&self, path: &Path, format: Format) -> Result<()> {
        let text = self.text(format)?;
        if path == Path::new("-") {
            return output::print(text.trim_end());
        }
        let context = || format!("the report cannot be written to {}", path.display());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            fs::create_dir_all(folder).with_context(context)?;
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        fs::write(&partial, text).and_then(|()| fs::rename(&partial, path)).with_context(context)
    }
}
