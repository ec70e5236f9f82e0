//! A run as it happens: a progress bar for the open round and a table that grows by a row per closed round.

use std::io::{IsTerminal as _, Write as _};

use fedpeft_protocol::{
    Round,
    event::{Event, EventKind},
    round::RoundReport,
    run::RunRecord,
    secure::SecureStage,
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{follow::Watcher, output};

/// Where the table goes. The bar goes to the standard error, and only to a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// The standard output.
    Stdout,
    /// The standard error: the standard output is taken by a report.
    Stderr,
}

/// The live view of one run.
#[derive(Debug)]
pub struct View {
    bar: ProgressBar,
    sink: Sink,
    rounds: Round,
    printed: Round,
    cumulative: u64,
    answered: u32,
    cohort: u32,
}

impl View {
    /// A view of a run of so many rounds.
    pub fn new(rounds: Round, sink: Sink) -> Self {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::no_length() } else { ProgressBar::hidden() };
        Self { bar, sink, rounds, printed: 0, cumulative: 0, answered: 0, cohort: 0 }
    }

    /// Prints a round, once.
    fn row(&mut self, report: &RoundReport) {
        if report.round <= self.printed {
            return;
        }
        if self.printed == 0 {
            self.line(&format_row(&HEADER.map(str::to_owned)));
        }
        self.printed = report.round;
        self.cumulative = self.cumulative.saturating_add(bytes_of(report));
        self.line(&format_row(&cells(report, self.cumulative)));
        for client in &report.clients {
            use fedpeft_protocol::round::ClientOutcome::{
                Accepted, Dropped, Failed, Rejected, Surplus, Training,
            };
            match &client.outcome {
                Accepted { staleness: 0, .. } | Training => {}
                Accepted { staleness, .. } => {
                    self.line(&format!("        {} is {staleness} rounds late", client.client));
                }
                Surplus => self.line(&format!("        {} was not needed", client.client)),
                Dropped => self.line(&format!("        {} dropped out", client.client)),
                Rejected { reason } => self.line(&format!("        {} refused: {reason}", client.client)),
                Failed { reason } => self.line(&format!("        {} failed: {reason}", client.client)),
            }
        }
    }

    /// Says what is being waited for.
    pub fn spin(&self, message: impl Into<String>) {
        self.bar.set_style(ProgressStyle::default_spinner());
        self.bar.set_message(message.into());
        self.bar.enable_steady_tick(std::time::Duration::from_millis(200));
    }

    /// Prints a remark beside the table.
    pub fn note(&self, text: &str) {
        self.notes().say(text);
    }

    /// A way to print remarks while the view is busy.
    pub fn notes(&self) -> Notes {
        Notes { bar: self.bar.clone() }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn answer(&mut self) {
        self.answered += 1;
        self.bar.set_position(u64::from(self.answered));
        if self.answered >= self.cohort {
            self.bar.set_message("aggregating and evaluating");
        }
    }

    fn line(&self, text: &str) {
        let text = output::plain(text);
        self.bar.suspend(|| {
            // A reader that went away must not end a run that still trains.
            let _ = match self.sink {
                Sink::Stdout => writeln!(std::io::stdout(), "{text}"),
                Sink::Stderr => writeln!(std::io::stderr(), "{text}"),
            };
        });
    }
}

impl Watcher for View {
    fn event(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Status { .. } => {}
            EventKind::Waiting { present, needed } => {
                self.spin(format!("waiting for clients: {present} of {needed} are present"));
            }
            EventKind::RoundOpened { round, cohort } => {
                (self.answered, self.cohort) = (0, cohort.len() as u32);
                // The bar is drawn after each of these: what it says comes first, its look last.
                self.bar.set_prefix(format!("round {round}/{}", self.rounds));
                self.bar.set_message("training");
                self.bar.set_length(cohort.len() as u64);
                self.bar.set_position(0);
                self.bar.reset_elapsed();
                self.bar.set_style(bar_style());
                self.bar.enable_steady_tick(std::time::Duration::from_millis(200));
            }
            EventKind::UpdateAccepted { .. } => self.answer(),
            EventKind::UpdateRejected { round, client, reason } => {
                self.note(&format!("round {round}: update of {client} refused: {reason}"));
                self.answer();
            }
            EventKind::SecureStageClosed { stage, clients, asked, .. } => {
                self.bar.set_message(format!("{} ({clients} of {asked} answered)", after(*stage)));
            }
            EventKind::RoundClosed { report } => self.row(report),
            // The bus joins these to what follows, and takes them apart.
            EventKind::RoundClients { .. } | EventKind::UpdatesAccepted { .. } => {}
        }
    }

    fn report(&mut self, report: &RoundReport) {
        self.row(report);
    }

    fn end(&mut self, _record: &RunRecord) {
        self.finish();
    }
}

/// What a secure round does when this stage has ended.
fn after(stage: SecureStage) -> &'static str {
    match stage {
        SecureStage::Advertise => "sharing secrets",
        SecureStage::Share => "masking updates",
        SecureStage::Mask => "confirming who is in the sum",
        SecureStage::Confirm => "taking the masks off the sum",
        SecureStage::Unmask => "aggregating and evaluating",
    }
}

/// Prints remarks beside the table.
#[derive(Debug, Clone)]
pub struct Notes {
    bar: ProgressBar,
}

impl Notes {
    /// Prints one.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| output::remark(text));
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.finish();
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} clients, {msg}, {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

const HEADER: [&str; 8] =
    ["round", "cohort", "loss", "accuracy", "bytes up", "bytes down", "cumulative MiB", "seconds"];
const WIDTHS: [usize; 8] = [5, 7, 8, 8, 12, 12, 14, 8];

fn format_row(cells: &[String; 8]) -> String {
    let padded = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:>width$}"));
    padded.collect::<Vec<_>>().join("  ")
}

fn cells(report: &RoundReport, cumulative: u64) -> [String; 8] {
    let measured = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    let accepted = report.clients.iter().filter(|client| client.outcome.word() == "accepted").count();
    [
        report.round.to_string(),
        format!("{accepted}/{}", report.clients.len()),
        measured(report.loss),
        measured(report.accuracy),
        output::grouped(report.bytes_up),
        output::grouped(report.bytes_down),
        format!("{:.2}", cumulative as f64 / f64::from(1 << 20)),
        format!("{:.2}", report.seconds.total),
    ]
}

fn bytes_of(report: &RoundReport) -> u64 {
    report.bytes_up.saturating_add(report.bytes_down)
}

/// The whole table at once.
pub fn table(rounds: &[RoundReport]) -> String {
    let mut lines = vec![format_row(&HEADER.map(str::to_owned))];
    let mut cumulative = 0;
    for report in rounds {
        cumulative = u64::saturating_add(cumulative, bytes_of(report));
        lines.push(format_row(&cells(report, cumulative)));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpeft_protocol::{ClientId, Digest, round::*};

    fn report() -> RoundReport {
        let client = |name: &str, outcome| ClientReport {
            client: ClientId::new(name).unwrap(),
            outcome,
            examples: 10,
            bytes_up: 500,
            bytes_down: 500,
            bytes_by_kind: BytesByKind::new(),
            loss: None,
            train_seconds: 0.5,
            personal: None,
            updates: 0,
            epsilon: None,
        };
        RoundReport {
            round: 1,
            loss: Some(0.5),
            accuracy: None,
            train_loss: 0.7,
            bytes_up: 1 << 20,
            bytes_down: 1 << 20,
            bytes_by_kind: BytesByKind::new(),
            payload_by_kind: BytesByKind::new(),
            clients: vec![
                client(
                    "a",
                    ClientOutcome::Accepted {
                        digest: Digest::of("x"),
                        update: "u".into(),
                        weight: 1,
                        staleness: 0,
                    },
                ),
                client("b", ClientOutcome::Dropped),
            ],
            privacy: None,
            secure: None,
            seconds: PhaseSeconds { total: 1.5, ..Default::default() },
            previous: Digest::of("p"),
            adapter: Digest::of("y"),
            residual: None,
            epoch: 1,
            ledger: fedpeft_protocol::ledger::empty(),
        }
    }

    #[test]
    fn rows_say_what_the_round_cost() {
        let text = table(&[report(), report()]);
        let last = text.lines().last().unwrap();
        assert_eq!(
            last.split_whitespace().collect::<Vec<_>>(),
            ["1", "1/2", "0.5000", "-", "1,048,576", "1,048,576", "4.00", "1.50"]
        );
        assert!(text.lines().all(|line| line.chars().count() == text.lines().next().unwrap().len()));
    }

    #[test]
    fn a_round_told_twice_is_printed_once() {
        let mut view = View::new(1, Sink::Stderr);
        view.row(&report());
        view.row(&report());
        assert_eq!((view.printed, view.cumulative), (1, 2 << 20));
    }
}
