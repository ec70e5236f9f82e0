//! Checks of numbers that people write.

/// A field of a [`crate::run::RunSpec`] that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {message}")]
pub struct InvalidSpec {
    /// Path of the field.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl InvalidSpec {
    pub(crate) fn new(field: &'static str, message: String) -> Self {
        Self { field, message }
    }
}

type Checked = Result<(), InvalidSpec>;

pub(crate) fn at_least_one(field: &'static str, value: u32) -> Checked {
    check(field, value >= 1, || "must be at least 1, not 0".to_owned())
}

pub(crate) fn positive(field: &'static str, value: f64) -> Checked {
    check(field, value.is_finite() && value > 0.0, || format!("must be greater than 0, not {value}"))
}

pub(crate) fn not_negative(field: &'static str, value: f64) -> Checked {
    check(field, value.is_finite() && value >= 0.0, || format!("must not be negative, but is {value}"))
}

/// A share of a whole: from nothing to everything.
pub(crate) fn share(field: &'static str, value: f64) -> Checked {
    check(field, (0.0..=1.0).contains(&value), || format!("must lie in [0, 1], not {value}"))
}

/// The factor of an exponential average, which would never forget at 1.
pub(crate) fn decay(field: &'static str, value: f64) -> Checked {
    check(field, (0.0..1.0).contains(&value), || format!("must lie in [0, 1), not {value}"))
}

pub(crate) fn check(field: &'static str, valid: bool, message: impl FnOnce() -> String) -> Checked {
    if valid { Ok(()) } else { Err(InvalidSpec::new(field, message())) }
}
