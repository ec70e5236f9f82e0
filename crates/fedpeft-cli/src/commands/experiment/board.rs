//! An experiment as it happens: one bar over all trials, and a line for each that ends.

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use fedpeft_experiment::{Estimate, Event, Status, Trial, TrialId};
use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// Parts that every trial's share of the bar is divided into.
const PARTS: f64 = 1000.0;

/// What is shown. The bar disappears when dropped.
pub struct Board {
    bar: ProgressBar,
    trials: usize,
    ended: usize,
    failed: usize,
    work: BTreeMap<TrialId, Work>,
    running: BTreeMap<TrialId, (String, u32)>,
}

/// What a trial is to the bar.
struct Work {
    /// Its length there.
    size: f64,
    rounds: u32,
    begun: Option<Instant>,
}

impl Board {
    /// Of so many trials.
    pub fn new(trials: usize) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = "[{bar:30}] {percent} %, {elapsed} gone, {eta} to go; {msg}";
        bar.set_style(
            ProgressStyle::with_template(style)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> "),
        );
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, trials, ended: 0, failed: 0, work: BTreeMap::new(), running: BTreeMap::new() }
    }

    /// A trial that was finished before.
    pub fn skip(&mut self) {
        self.ended += 1;
    }

    /// A trial that is to be run.
    pub fn expect(&mut self, trial: &Trial, estimate: Estimate, rounds: u32) {
        let size = estimate.passes.map_or(1.0, |passes| passes * trial.cost) * PARTS;
        self.bar.inc_length(size as u64);
        self.work.insert(trial.id.clone(), Work { size, rounds, begun: None });
    }

    /// Shows one thing that happened.
    pub fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Begun(trial) => {
                if let Some(work) = self.work.get_mut(&trial.id) {
                    work.begun = Some(Instant::now());
                }
                self.running.insert(trial.id.clone(), (trial.label.clone(), 0));
            }
            Event::Round(trial, round) => {
                if let Some((_, done)) = self.running.get_mut(&trial.id) {
                    *done = round;
                }
            }
            Event::Ended(trial, status) => self.end(trial, status),
        }
        self.draw();
    }

    fn end(&mut self, trial: &Trial, status: &Status) {
        self.running.remove(&trial.id);
        let line = match status {
            Status::Finished(outcome) => {
                let accuracy = outcome
                    .final_accuracy()
                    .map_or("not evaluated".to_owned(), |own| format!("accuracy {own:.4}"));
                let bytes = outcome.cumulative().last().map_or(0, |(_, bytes)| bytes);
                format!("{accuracy}, {} up and down", output::bytes(bytes))
            }
            Status::Failed(reason) => {
                self.failed += 1;
                format!("failed: {reason}")
            }
            Status::Begun | Status::Missing => return,
        };
        self.ended += 1;
        let begun = self.work.get(&trial.id).and_then(|work| work.begun);
        let took =
            begun.map_or_else(String::new, |begun| format!(", {:.0} s", begun.elapsed().as_secs_f64()));
        let (ended, trials) = (self.ended, self.trials);
        self.bar.suspend(|| output::remark(format!("{ended}/{trials} {}: {line}{took}", trial.label)));
    }

    fn draw(&self) {
        let gone = self.work.iter().map(|(id, work)| match (self.running.get(id), work.begun) {
            (Some((_, round)), _) => work.size * f64::from(*round) / f64::from(work.rounds.max(1)),
            (None, Some(_)) => work.size,
            (None, None) => 0.0,
        });
        self.bar.set_position(gone.sum::<f64>() as u64);
        let running = self.running.values().map(|(label, round)| format!("{label} round {round}"));
        let failed = if self.failed == 0 { String::new() } else { format!(", {} failed", self.failed) };
        let now = running.collect::<Vec<_>>().join(", ");
        self.bar.set_message(format!("{}/{}{failed}; {now}", self.ended, self.trials));
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
