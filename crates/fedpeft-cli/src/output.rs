//! What the commands print: tables and numbers for people, JSON for programs.

use std::{borrow::Cow, fmt, io::Write as _};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
pub use fedpeft_page::{bytes, grouped, percent};
use serde::Serialize;

/// Whom the output is for.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Output {
    /// Print one JSON document instead of tables and sentences.
    #[arg(long)]
    json: bool,
}

impl Output {
    /// Whether a program reads the output.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Prints `value` as JSON, or what `human` makes of it.
    pub fn show<T: Serialize, H: fmt::Display>(self, value: &T, human: impl FnOnce(&T) -> H) -> Result<()> {
        if self.json { print(serde_json::to_string_pretty(value)?) } else { print(human(value)) }
    }
}

/// Prints one text and a line end to the standard output.
pub fn print(text: impl fmt::Display) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{}", plain(&text.to_string()))?)
}

/// Prints one line to the standard error; nobody minds if it cannot be read.
pub fn remark(text: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{}", plain(&text.to_string()));
}

/// Text as it may go to a terminal: what strangers say (a reason, a label) cannot move the cursor, change colours or
/// set the title. Line ends and tabs are kept.
pub fn plain(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    text.chars().map(|c| if harmless(c) { c } else { ' ' }).collect()
}

/// The user ended the command.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// The error and its causes on one line. A cause that its parent already quotes is not repeated.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    plain(&line).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the error is that the reader of our output went away.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    error.downcast_ref::<std::io::Error>().is_some_and(kind)
}

/// An empty table: no borders, a rule under the header. Columns of `numbers` are aligned to the right.
pub fn table(header: &[&str], numbers: impl IntoIterator<Item = usize>) -> Table {
    let mut table = Table::new();
    let rule = comfy_table::LineStyle::none().fill('─').junction('─');
    table.load_style(presets::NOTHING.header_separator(rule)).set_header(header.iter().copied());
    for index in numbers {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_and_quote_nothing_twice() {
        let inner = anyhow::anyhow!("no such\nfile");
        let error = inner.context("reading x: no such\nfile").context("run.toml");
        assert_eq!(one_line(&error), "run.toml: reading x: no such file");
    }

    #[test]
    fn tables_have_a_header_and_a_rule() {
        let mut table = table(&["name", "count"], [1]);
        table.add_row(["a", "1"]);
        let lines: Vec<String> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains('─'));
    }

    #[test]
    fn what_strangers_say_cannot_drive_a_terminal() {
        assert_eq!(plain("a b\n\tc \u{e9}"), "a b\n\tc \u{e9}");
        assert_eq!(plain("\u{1b}]0;title\u{7}\u{1b}[31mred\r\u{9b}2J"), " ]0;title  [31mred  2J");
    }
}
