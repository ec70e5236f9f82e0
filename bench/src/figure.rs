//! Figures with their spread.

use std::fmt;

use serde::Serialize;

/// What repeated measurements came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub count: usize,
}

impl Spread {
    /// The spread of these; of none, zeros.
    pub fn of(mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        let at = |index: usize| all.get(index).copied().unwrap_or(0.0);
        let count = all.len();
        let last = count.saturating_sub(1);
        Self { median: (at(last / 2) + at(count / 2)) / 2.0, least: at(0), most: at(last), count }
    }

    /// Each end over the median of a reference.
    pub fn over(self, reference: Self) -> Self {
        let over = |value: f64| value / reference.median.max(f64::MIN_POSITIVE);
        Self { median: over(self.median), least: over(self.least), most: over(self.most), count: self.count }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, least, most, .. } = self;
        f.pad(&format!("{median:.3} ({least:.3} to {most:.3})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!(spread, Spread { median: 2.5, least: 1.0, most: 10.0, count: 4 });
        assert_eq!(spread.over(Spread::of(vec![0.5])).median, 5.0);
        assert_eq!(Spread::of(vec![]).median, 0.0);
        assert_eq!(spread.to_string(), "2.500 (1.000 to 10.000)");
    }
}
