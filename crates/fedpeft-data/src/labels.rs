//! What examples are labelled with.

use std::fmt;

use crate::prepare::{BatchError, Column};

/// What a model learns to predict from this data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelKind {
    /// One of so many classes: `i64 [N]`.
    Classes(u32),
    /// Any of so many labels: `f32 [N, K]` of 0 and 1.
    MultiLabel(u32),
    /// So many real numbers: `f32 [N, K]`.
    Regression(u32),
    /// The tokens of the text: `i64 [N, T]`, [`IGNORED`] at padding.
    Tokens,
}

impl fmt::Display for LabelKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Classes(count) => write!(formatter, "one of {count} classes"),
            Self::MultiLabel(count) => write!(formatter, "any of {count} labels"),
            Self::Regression(count) => write!(formatter, "{count} numbers"),
            Self::Tokens => write!(formatter, "its tokens"),
        }
    }
}

/// Label of a token that is not scored.
pub const IGNORED: i64 = -100;

/// The labels of a dataset, by example.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Labels {
    Classes {
        classes: u32,
        values: Vec<u32>,
    },
    MultiLabel {
        labels: u32,
        /// Ascending, each below `labels`.
        rows: Vec<Vec<u32>>,
    },
    Regression {
        outputs: u32,
        /// `[examples, outputs]`
        values: Vec<f32>,
    },
    Tokens {
        examples: usize,
    },
}

impl Labels {
    pub fn len(&self) -> usize {
        match self {
            Self::Classes { values, .. } => values.len(),
            Self::MultiLabel { rows, .. } => rows.len(),
            Self::Regression { outputs, values } => values.len() / *outputs as usize,
            Self::Tokens { examples } => *examples,
        }
    }

    pub fn kind(&self) -> LabelKind {
        match self {
            Self::Classes { classes, .. } => LabelKind::Classes(*classes),
            Self::MultiLabel { labels, .. } => LabelKind::MultiLabel(*labels),
            Self::Regression { outputs, .. } => LabelKind::Regression(*outputs),
            Self::Tokens { .. } => LabelKind::Tokens,
        }
    }

    /// The class by which each example is split and dealt out: its class, or its first label, those without
    /// any being a class of their own behind the others. One for all where there are no classes.
    pub fn strata(&self) -> Strata {
        match self {
            Self::Classes { classes, values } => Strata { count: *classes, of: values.clone() },
            Self::MultiLabel { labels, rows } => {
                let unlabelled = rows.iter().any(Vec::is_empty);
                Strata {
                    count: labels + u32::from(unlabelled),
                    of: rows.iter().map(|row| row.first().copied().unwrap_or(*labels)).collect(),
                }
            }
            Self::Regression { .. } | Self::Tokens { .. } => Strata { count: 1, of: vec![0; self.len()] },
        }
    }

    /// Values per example in a batch of labels; none where it is as long as a text.
    pub fn width(&self) -> Option<usize> {
        match self {
            Self::Classes { .. } => Some(1),
            Self::MultiLabel { labels: width, .. } | Self::Regression { outputs: width, .. } => {
                Some(*width as usize)
            }
            Self::Tokens { .. } => None,
        }
    }

    /// Writes the labels of `examples`, positions below [`Self::len`], for which `column` has room.
    pub fn write(&self, examples: impl Iterator<Item = usize>, column: Column<'_>) -> Result<(), BatchError> {
        match (self, column) {
            (Self::Classes { values, .. }, Column::I64(column)) => {
                for (example, slot) in examples.zip(column) {
                    *slot = i64::from(values[example]);
                }
            }
            (Self::MultiLabel { labels, rows }, Column::F32(column)) => {
                for (example, slots) in examples.zip(column.chunks_exact_mut(*labels as usize)) {
                    slots.fill(0.0);
                    rows[example].iter().for_each(|label| slots[*label as usize] = 1.0);
                }
            }
            (Self::Regression { outputs, values }, Column::F32(column)) => {
                let width = *outputs as usize;
                for (example, slots) in examples.zip(column.chunks_exact_mut(width)) {
                    slots.copy_from_slice(&values[example * width..][..width]);
                }
            }
            (Self::Classes { .. }, Column::F32(_)) => {
                return Err(BatchError::Type { buffer: "label", needed: "i64" });
            }
            (Self::MultiLabel { .. } | Self::Regression { .. }, Column::I64(_)) => {
                return Err(BatchError::Type { buffer: "label", needed: "f32" });
            }
            (Self::Tokens { .. }, _) => return Err(BatchError::TokensNeeded),
        }
        Ok(())
    }
}

/// Classes by which examples are dealt out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strata {
    /// Classes; those of examples are below it.
    pub count: u32,
    /// By example.
    pub of: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_label_is_the_stratum_and_none_is_one_too() {
        let labels = Labels::MultiLabel { labels: 3, rows: vec![vec![1, 2], vec![], vec![0]] };
        assert_eq!(labels.strata(), Strata { count: 4, of: vec![1, 3, 0] });
        let targets = Labels::Regression { outputs: 2, values: vec![0.5; 6] };
        assert_eq!((targets.len(), targets.strata()), (3, Strata { count: 1, of: vec![0; 3] }));
    }

    #[test]
    fn each_kind_is_written_in_its_type() {
        let labels = Labels::MultiLabel { labels: 3, rows: vec![vec![1, 2], vec![], vec![0]] };
        let mut row = [9.0; 6];
        labels.write([2, 0].into_iter(), Column::F32(&mut row)).unwrap();
        assert_eq!(row, [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
        let error = labels.write([0].into_iter(), Column::I64(&mut [0; 3])).unwrap_err();
        assert_eq!(error, BatchError::Type { buffer: "label", needed: "f32" });
        let targets = Labels::Regression { outputs: 2, values: vec![1.0, 2.0, 3.0, 4.0] };
        targets.write([1].into_iter(), Column::F32(&mut row[..2])).unwrap();
        assert_eq!(row[..2], [3.0, 4.0]);
    }
}
