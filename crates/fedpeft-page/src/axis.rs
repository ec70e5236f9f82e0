//! Axes: where they begin and end, and round ticks.

use std::ops::Range;

use plotters::coord::{
    ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    types::RangedCoordf64,
};

/// The horizontal axis.
#[derive(Debug, Clone, PartialEq)]
pub enum XAxis {
    /// Numbers, as they are or by their logarithms.
    Numbers {
        /// What they are.
        label: String,
        /// Whether equal distances are equal ratios.
        log: bool,
    },
    /// Names, evenly spaced; the points lie at 0, 1, ...
    Names {
        /// What they are.
        label: String,
        /// The names.
        names: Vec<String>,
    },
}

/// The vertical axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum YAxis {
    /// From zero to this.
    UpTo(f64),
    /// By logarithms, from whole decade to whole decade around all points.
    Log,
}

/// How places on an axis are written.
#[derive(Debug, Clone, PartialEq)]
enum Form {
    Plain,
    Log,
    Names(Vec<String>),
}

/// An axis with the places of its ticks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ticks {
    range: Range<f64>,
    at: Vec<f64>,
    form: Form,
}

/// A logarithm of what may be nothing.
fn log(value: f64) -> f64 {
    value.max(f64::MIN_POSITIVE).log10()
}

impl XAxis {
    pub(crate) fn label(&self) -> &str {
        match self {
            Self::Numbers { label, .. } | Self::Names { label, .. } => label,
        }
    }

    pub(crate) fn place(&self, x: f64) -> f64 {
        if matches!(self, Self::Numbers { log: true, .. }) { log(x) } else { x }
    }

    /// The axis for points at these places. Bars take half a unit on either side.
    pub(crate) fn ticks(&self, xs: impl Iterator<Item = f64> + Clone, bars: bool) -> Ticks {
        let (low, high) = ends(xs.clone().map(|x| self.place(x)));
        match self {
            Self::Names { names, .. } => {
                let count = names.len();
                let at = (0..count).map(|at| at as f64).collect();
                Ticks { range: -0.5..count as f64 - 0.5, at, form: Form::Names(names.clone()) }
            }
            Self::Numbers { log: true, .. } if low.is_finite() => {
                let (low, high) = (low - 0.1, high + 0.1);
                let marks: &[f64] = if high - low > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                Ticks { at: decades(low, high, marks), range: low..high, form: Form::Log }
            }
            Self::Numbers { .. } => {
                let high = if high.is_finite() && high > 0.0 { high } else { 1.0 };
                // Rounds are whole.
                let whole = xs.clone().all(|x| x.fract() == 0.0);
                let (ends, least) = if bars { (0.5..high + 0.5, 1) } else { (0.0..1.02 * high, 0) };
                Ticks { at: steps(high, whole, least), range: ends, form: Form::Plain }
            }
        }
    }
}

impl YAxis {
    pub(crate) fn place(self, y: f64) -> f64 {
        match self {
            Self::UpTo(_) => y,
            Self::Log => log(y),
        }
    }

    /// The axis for points at these heights, of which there are none below zero. Of logarithms, zero has none.
    pub(crate) fn ticks(self, ys: impl Iterator<Item = f64>) -> Ticks {
        match self {
            Self::UpTo(top) => {
                let top = if top.is_finite() && top > 0.0 { top } else { 1.0 };
                Ticks { at: steps(top, false, 0), range: 0.0..top, form: Form::Plain }
            }
            Self::Log => {
                let (low, high) = ends(ys.filter(|y| *y > 0.0).map(log));
                let (low, high) = if low.is_finite() {
                    (low.floor(), high.ceil().max(low.floor() + 1.0))
                } else {
                    (0.0, 1.0)
                };
                Ticks { at: decades(low, high, &[1.0]), range: low..high, form: Form::Log }
            }
        }
    }
}

/// The least and the greatest of them.
fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// Multiples of a round step up to `high`, about six, from `least` times the step on.
fn steps(high: f64, whole: bool, least: u32) -> Vec<f64> {
    let step = round_step(high / 6.0);
    let step = if whole { step.max(1.0) } else { step };
    let count = (high / step * (1.0 + 1e-9)).floor() as u32;
    (least..=count).map(|at| f64::from(at) * step).collect()
}

/// Logarithms of these marks in every decade between `low` and `high`.
fn decades(low: f64, high: f64, marks: &[f64]) -> Vec<f64> {
    let decades = low.floor() as i32..=high.ceil() as i32;
    let at = decades.flat_map(|decade| marks.iter().map(move |mark| mark.log10() + f64::from(decade)));
    at.filter(|at| (low..=high).contains(at)).collect()
}

/// The least of 1, 2 and 5 times a power of ten that is no less than `step`.
fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|mark| mark * decade).into_iter().find(|own| *own >= step).unwrap_or(step)
}

impl Ticks {
    /// What stands at a place.
    pub fn write(&self, at: f64) -> String {
        match &self.form {
            Form::Plain => short(at),
            Form::Log => short(10f64.powf(at)),
            Form::Names(names) => names.get(at.max(0.0).round() as usize).cloned().unwrap_or_default(),
        }
    }
}

/// Ticks have one significant digit or two; the sums of floats have more. Large ones are written in thousands or millions.
fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        1e6.. => (value / 1e6, "M"),
        1e4.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    format!("{}{unit}", (value * 1e6).round() / 1e6)
}

impl Ranged for Ticks {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range.clone()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.at.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Ticks {
    fn format_ext(&self, at: &f64) -> String {
        self.write(*at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(ticks: &Ticks) -> Vec<String> {
        ticks.at.iter().map(|at| ticks.write(*at)).collect()
    }

    #[test]
    fn ticks_are_round() {
        let numbers = |log| XAxis::Numbers { label: String::new(), log };
        let xs = [1.0, 200.0].into_iter();
        assert_eq!(words(&numbers(false).ticks(xs.clone(), false)), ["0", "50", "100", "150", "200"]);
        let log = words(&numbers(true).ticks(xs.clone(), false));
        assert_eq!(log, ["1", "2", "5", "10", "20", "50", "100", "200"]);
        assert_eq!(words(&numbers(false).ticks([1.0, 2.0].into_iter(), true)), ["1", "2"]);
        let names = vec!["iid".to_owned(), "0.1".to_owned()];
        let axis = XAxis::Names { label: String::new(), names: names.clone() };
        assert_eq!(words(&axis.ticks(xs, false)), names);
        assert_eq!(words(&YAxis::UpTo(0.7).ticks([].into_iter())), ["0", "0.2", "0.4", "0.6"]);
        assert_eq!(
            words(&YAxis::UpTo(0.3).ticks([].into_iter())),
            ["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]
        );
        let powers = words(&YAxis::Log.ticks([0.0, 3.0, 2e5].into_iter()));
        assert_eq!(powers, ["1", "10", "100", "1000", "10k", "100k", "1M"]);
    }

    #[test]
    fn an_axis_of_nothing_has_an_extent() {
        for ticks in [
            XAxis::Numbers { label: String::new(), log: true }.ticks([].into_iter(), false),
            YAxis::Log.ticks([0.0].into_iter()),
            YAxis::Log.ticks([10.0].into_iter()),
            YAxis::UpTo(0.0).ticks([].into_iter()),
            YAxis::UpTo(f64::NAN).ticks([].into_iter()),
        ] {
            assert!(ticks.range.start < ticks.range.end, "{ticks:?}");
        }
    }
}
