//! Parameters with which a round would be impossible or unsafe.

use super::{MAX_COHORT, MAX_NAME, MAX_VALUES};
use crate::encoding::{LEAST_NOISE, MOST_NOISE};

/// Parameters with which a round would be impossible or unsafe.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ParamsError {
    #[error(
        "no threshold serves {cohort} clients of whom {dropout} drop out and {corrupt} collude: ask for less"
    )]
    NoPlan { cohort: usize, dropout: f64, corrupt: f64 },
    #[error("{0} clients: secure aggregation takes 2 to {MAX_COHORT}")]
    Cohort(usize),
    #[error("name {0:?} is empty or longer than {MAX_NAME} bytes")]
    Name(String),
    #[error("client {0:?} is listed twice or not in order: list each once, by name ascending")]
    Order(String),
    #[error("client {0:?} has no valid Ed25519 identity of its own: enrol it with a new key")]
    Identity(String),
    #[error("client {0:?} has another identity than the one known here: ask its operator, or take it out")]
    NotPinned(String),
    #[error(
        "graph of degree {degree} over {cohort} clients: take an even degree of at least 2, below the cohort's size"
    )]
    Degree { degree: u32, cohort: usize },
    #[error("threshold {threshold} of {holders} holders: take more than half, and at most all")]
    Threshold { threshold: u32, holders: usize },
    #[error(
        "quorum {quorum} of {cohort} clients: take more than half, at least the threshold, and at most all"
    )]
    Quorum { quorum: u32, cohort: usize },
    #[error("{0} values: an update has 1 to {MAX_VALUES}")]
    Values(u32),
    #[error("{bits} bits per value: take 8 to 56")]
    Bits { bits: u8 },
    #[error("largest weight: take at least 1, and 1 with noise")]
    Weight,
    #[error(
        "noise of {0} integers from each client: parts are {LEAST_NOISE} to {MOST_NOISE} integers, of updates with a norm; \
         choose another precision"
    )]
    Noise(f64),
    #[error(
        "{precision} bits are too coarse for {values} values with noise: rounding would take more than a tenth of it; raise \
         the precision"
    )]
    Coarse { values: usize, precision: u8 },
    #[error("bound {0} on an update's values: take a positive number")]
    Bound(f32),
    #[error(
        "sums of {cohort} clients need {needed} bits per value and have {bits}: take more bits, less precision or \
         smaller weights"
    )]
    Wraps { cohort: usize, needed: u32, bits: u8 },
}
