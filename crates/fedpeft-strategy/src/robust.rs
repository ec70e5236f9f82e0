//! Means that a few updates cannot move far, whatever they hold.
//!
//! A robust rule has to see all updates of a round together, so they are kept until it closes. From then on memory
//! does not depend on the adapter: all updates are read side by side, a block of values of each at a time, and all
//! blocks together take at most 64 MiB; Krum holds in addition the distance of every two updates (8 bytes each).
//!
//! | rule | passes over each update | holds while liars are |
//! | --- | --- | --- |
//! | median | 1 | fewer than half |
//! | trimmed mean | 1 | at most the trimmed share |
//! | Krum, Multi-Krum | 3 | at most `byzantine`, of `2 byzantine + 3` and more |
//! | geometric median | 2 + iterations | less than half, by weight |
//!
//! No rule depends on the order of the updates, to the byte. The median and the trimmed mean sort every coordinate;
//! the others take the updates in the order of their contents (SHA-256, then weight), in which they also break ties.

mod geometric;
mod krum;
mod rows;
mod sorted;

use fedpeft_codec::Layout;

use crate::accumulator::{AccumulateError, MAX_UPDATES, Spool, SpoolError, Weight};
use rows::Rows;

pub use crate::mean::CHUNK_VALUES;

/// An update that is kept until its round closes.
pub struct Gathered {
    /// The client's adapter, encoded.
    pub adapter: Box<dyn Spool + Send>,
    /// What it weighs in rules that weigh.
    pub weight: Weight,
}

/// How updates become one adapter when some of them may be lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RobustRule {
    /// The median of every coordinate (Yin et al., arXiv 1803.01498, definition 1), unweighted; for an even number of
    /// updates the mean of the two in the middle.
    Median,
    /// The mean of every coordinate without its smallest and its largest values (the same paper, definition 2),
    /// unweighted.
    TrimmedMean {
        /// Share of the updates cut off at each end, 0 to 0.5: `ceil(trim n)` of `n` values, but never all.
        trim: f64,
    },
    /// The update whose neighbours are nearest, or the mean of the best of them, weighted (Krum and Multi-Krum,
    /// Blanchard et al., NeurIPS 2017). An update's score is the sum of its squared distances to the
    /// `n - byzantine - 2` nearest others.
    Krum {
        /// Most updates that may be lies.
        byzantine: u32,
        /// Updates of the lowest scores in the mean, at least 1: Krum has 1.
        keep: u32,
    },
    /// The point of the least weighted distance to all updates (RFA, Pillutla et al., arXiv 1912.13445, algorithm 2:
    /// the smoothed Weiszfeld algorithm), beginning at their mean. While liars of weight `p` in 1 are far off, every
    /// iteration divides what they move by about `(1 - p) / p`.
    GeometricMedian {
        /// Iterations; with none it is the weighted mean.
        iterations: u32,
        /// Distances below it count as this much, above 0.
        smoothing: f64,
    },
}

impl RobustRule {
    /// Its name for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Median => "median",
            Self::TrimmedMean { .. } => "trimmed mean",
            Self::Krum { keep: 0 | 1, .. } => "Krum",
            Self::Krum { .. } => "Multi-Krum",
            Self::GeometricMedian { .. } => "geometric median",
        }
    }

    /// Fewest updates it can work with.
    pub fn least(&self) -> u32 {
        match *self {
            Self::TrimmedMean { trim } if trim > 0.0 => 3,
            Self::Median | Self::TrimmedMean { .. } | Self::GeometricMedian { .. } => 1,
            // As many honest ones as are kept.
            Self::Krum { byzantine, keep } => {
                byzantine.saturating_mul(2).saturating_add(3).max(byzantine.saturating_add(keep))
            }
        }
    }

    /// Most updates it can work with.
    pub fn most(&self) -> u32 {
        match self {
            Self::Krum { .. } => krum::MOST,
            _ => MAX_UPDATES as u32,
        }
    }

    /// Gives the robust mean to `each`, in chunks of [`CHUNK_VALUES`] values; the last may be shorter.
    ///
    /// Every update has passed [`check_update`](crate::check_update) with this layout, so that no value is NaN and no
    /// distance overflows. Values of the result lie between the smallest and the largest of each coordinate, but for
    /// the rounding of `f64`.
    ///
    /// # Errors
    /// Fewer updates than [`Self::least`], more than [`Self::most`], an update that cannot be read, or what `each` returns.
    pub fn aggregate(
        &self,
        layout: &Layout,
        updates: &mut [Gathered],
        each: &mut dyn FnMut(&[f64]) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        let (count, values) = (updates.len(), layout.values());
        self.fits(count)?;
        match *self {
            Self::Median => sorted::middle(&mut Rows::new(updates, values), (count - 1) / 2, each),
            Self::TrimmedMean { trim } => {
                sorted::middle(&mut Rows::new(updates, values), cut(trim, count), each)
            }
            Self::Krum { byzantine, keep } => {
                let mut rows = Rows::by_content(updates, values)?;
                let kept = krum::best(&mut rows, byzantine, keep)?;
                let mut rows = rows.only(&kept);
                let shares = rows.shares();
                rows.blend(&shares, each)
            }
            Self::GeometricMedian { iterations, smoothing } => {
                let mut rows = Rows::by_content(updates, values)?;
                let weights = geometric::weights(&mut rows, iterations, smoothing)?;
                rows.blend(&weights, each)
            }
        }
    }

    fn fits(&self, updates: usize) -> Result<(), AccumulateError> {
        let (rule, least, most) = (self.name(), self.least(), self.most());
        match updates {
            _ if updates < least as usize => Err(AccumulateError::Few { rule, least, updates }),
            _ if updates > most as usize => Err(AccumulateError::Many { rule, most, updates }),
            _ => Ok(()),
        }
    }
}

/// Values cut off at each end: as many as liars can be among `count`, and so that one is left. A product such as
/// `0.07 x 100` that is a whole number but for its rounding counts as that number.
fn cut(trim: f64, count: usize) -> usize {
    ((trim * count as f64 - 1e-9).ceil() as usize).min((count - 1) / 2)
}

#[cfg(test)]
mod tests;
