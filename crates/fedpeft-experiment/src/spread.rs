//! Means and deviations over seeds.

use serde::Serialize;

/// A mean over seeds and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of a sample, with n - 1 in the denominator; none of a single value.
    pub sd: Option<f64>,
    /// How many values.
    pub n: usize,
}

impl Spread {
    /// Of these values; none of no value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let sd = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        Some(Self { mean, sd, n })
    }

    /// `0.712 ± 0.013`, `42.3` or `512`: three digits or so, whatever the size.
    pub fn short(&self) -> String {
        self.show(match self.mean.abs() {
            small if small < 1.0 => 3,
            small if small < 10.0 => 2,
            small if small < 100.0 => 1,
            _ => 0,
        })
    }

    /// `0.712 ± 0.013`, with so many digits.
    pub fn show(&self, digits: usize) -> String {
        let Self { mean, sd, .. } = self;
        match sd {
            None => format!("{mean:.digits$}"),
            Some(sd) => format!("{mean:.digits$} ± {sd:.digits$}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_are_those_of_a_sample() {
        let spread = Spread::of([1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((spread.mean, spread.n), (2.5, 4));
        assert!((spread.sd.unwrap() - 1.290_994_448_735_805_6).abs() < 1e-15);
        assert_eq!(spread.show(2), "2.50 ± 1.29");
        assert_eq!(Spread::of([0.7125]).unwrap().show(3), "0.713");
        let short = [0.2443, 2.4432, 24.4321, 244.321].map(|value| Spread::of([value]).unwrap().short());
        assert_eq!(short, ["0.244", "2.44", "24.4", "244"]);
        assert_eq!(Spread::of([]), None);
    }
}
