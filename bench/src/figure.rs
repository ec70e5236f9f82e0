//! Figures with their spread, each beside a reference of the same run.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What repeated measurements came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    /// A quarter of them lie below; of a few, none.
    pub low: f64,
    /// A quarter of them lie above; of a few, none.
    pub high: f64,
    pub count: usize,
}

impl Spread {
    /// The spread of these; of none, zeros.
    pub fn of(mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        let at = |index: usize| all.get(index).copied().unwrap_or(0.0);
        let count = all.len();
        let last = count.saturating_sub(1);
        let (low, high) = (last / 4, last - last / 4);
        Self { median: (at(last / 2) + at(count / 2)) / 2.0, low: at(low), high: at(high), count }
    }

    /// Of one measurement.
    pub fn one(value: f64) -> Self {
        Self::of(vec![value])
    }

    /// Each end over the median of a reference.
    pub fn over(self, reference: Self) -> Self {
        self.times(1.0 / reference.median.max(f64::MIN_POSITIVE))
    }

    /// In another unit.
    pub fn times(self, factor: f64) -> Self {
        let Self { median, low, high, count } = self;
        Self { median: median * factor, low: low * factor, high: high * factor, count }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, low, high, count } = *self;
        match count {
            0 | 1 => f.pad(&short(median)),
            _ => f.pad(&format!("{} ({} to {})", short(median), short(low), short(high))),
        }
    }
}

/// Three digits that count.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// What is measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// A training step by method, resolution and batch, beside the forward pass.
    Train,
    /// Building artifacts, beside copying the model.
    Artifacts,
    /// Encoding and decoding by pipeline, beside memcpy.
    Codec,
    /// Adding an update to the sum, beside memcpy.
    Accumulator,
    /// Requests, durable messages and records, beside those of plain NATS.
    Broker,
    /// Whole rounds of many clients, beside raw publishing of their updates.
    Rounds,
    /// Real runs: seconds, memory and bytes by method.
    Runs,
    /// Memory of workers against clients, adapter and backbone.
    Memory,
    /// From launch to the first training step.
    Startup,
    /// Programs as files.
    Programs,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub section: Section,
    /// What was measured; figures that belong to one line have one name.
    pub name: String,
    /// What of it.
    pub what: String,
    /// What it grows with, where it is one of a line: clients, pixels, bytes.
    pub x: Option<f64>,
    pub unit: String,
    pub value: Spread,
    /// What it is compared to.
    pub reference: Option<Reference>,
    /// The value over the reference.
    pub ratio: Option<Spread>,
}

/// What a figure is compared to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub value: Spread,
}

impl Figure {
    pub fn new(section: Section, name: impl Into<String>, what: impl Into<String>) -> Self {
        let (name, what) = (name.into(), what.into());
        let (x, unit, value) = (None, String::new(), Spread::of(vec![]));
        Self { section, name, what, x, unit, value, reference: None, ratio: None }
    }

    pub fn at(self, x: f64) -> Self {
        Self { x: Some(x), ..self }
    }

    pub fn is(self, value: Spread, unit: &str) -> Self {
        Self { value, unit: unit.into(), ..self }
    }

    /// Beside a reference in the same unit.
    pub fn beside(self, name: &str, value: Spread) -> Self {
        let ratio = Some(self.value.over(value));
        Self { reference: Some(Reference { name: name.into(), value }), ratio, ..self }
    }
}

/// All of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The machine, in words.
    pub machine: String,
    /// `release` or `debug`.
    pub build: String,
    /// Day of the run.
    pub day: String,
    /// Whether fewer and smaller measurements were made.
    pub quick: bool,
    /// Seconds that all took.
    pub seconds: f64,
    pub figures: Vec<Figure>,
}

impl Report {
    /// The figure of this section, name and what; at `x`, where one is given.
    pub fn find(&self, section: Section, name: &str, what: &str, x: Option<f64>) -> Option<&Figure> {
        self.figures.iter().find(|figure| {
            (figure.section, figure.name.as_str(), figure.what.as_str()) == (section, name, what)
                && (x.is_none() || figure.x == x)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!(spread, Spread { median: 2.5, low: 1.0, high: 10.0, count: 4 });
        let many = Spread::of((1..=9).map(f64::from).collect());
        assert_eq!((many.low, many.median, many.high), (3.0, 5.0, 7.0));
        assert_eq!(spread.over(Spread::one(0.5)).median, 5.0);
        assert_eq!(Spread::of(vec![]).median, 0.0);
        assert_eq!(spread.to_string(), "2.50 (1.00 to 10.0)");
        assert_eq!(Spread::one(123.4).to_string(), "123");
    }
}
