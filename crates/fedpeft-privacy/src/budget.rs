//! What releases cost, and what a budget asks for.

use std::{fmt, str::FromStr};

use crate::{Mechanism, PrivacyError, Sampling, prv, rdp};

/// How privacy is accounted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accountant {
    /// Renyi differential privacy.
    Rdp,
    /// The privacy random variable: tighter, above all for samples of a fixed size.
    #[default]
    Prv,
}

impl fmt::Display for Accountant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Rdp => "rdp",
            Self::Prv => "prv",
        })
    }
}

impl FromStr for Accountant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "rdp" => Ok(Self::Rdp),
            "prv" => Ok(Self::Prv),
            _ => Err(format!("accountant {text:?} is not known: use rdp or prv")),
        }
    }
}

/// An upper bound of epsilon at `delta` of these releases, each with its count.
///
/// # Errors
/// A delta that is none, or releases of both kinds of sampling.
pub fn epsilon(
    accountant: Accountant,
    releases: &[(Mechanism, u64)],
    delta: f64,
) -> Result<f64, PrivacyError> {
    check_delta(delta)?;
    check_neighbours(releases)?;
    Ok(match accountant {
        Accountant::Rdp if releases.iter().all(|(_, count)| *count == 0) => 0.0,
        Accountant::Rdp => rdp::epsilon(releases, delta),
        Accountant::Prv => prv::epsilon(releases, delta),
    })
}

/// An upper bound of delta at `epsilon` of these releases, each with its count.
///
/// # Errors
/// An epsilon that is none, or releases of both kinds of sampling.
pub fn delta(
    accountant: Accountant,
    releases: &[(Mechanism, u64)],
    epsilon: f64,
) -> Result<f64, PrivacyError> {
    check_epsilon(epsilon)?;
    check_neighbours(releases)?;
    Ok(match accountant {
        Accountant::Rdp if releases.iter().all(|(_, count)| *count == 0) => 0.0,
        Accountant::Rdp => rdp::delta(releases, epsilon),
        Accountant::Prv => prv::delta(releases, epsilon),
    })
}

/// Most noise that is looked for.
const MOST_NOISE: f64 = 1e6;

/// The least noise multiplier, to a thousandth, with which `count` releases cost at most `epsilon` at `delta`.
///
/// # Errors
/// Numbers that make no budget, or [`PrivacyError::Budget`].
pub fn noise_multiplier(
    accountant: Accountant,
    sampling: Sampling,
    count: u64,
    epsilon: f64,
    delta: f64,
) -> Result<f64, PrivacyError> {
    check_epsilon(epsilon)?;
    check_delta(delta)?;
    let spent = |noise| self::epsilon(accountant, &[(Mechanism::new(sampling, noise)?, count)], delta);
    let fits = |noise: f64| spent(noise).map(|spent| spent <= epsilon);
    let (mut low, mut high) = (0.0, 1.0);
    while !fits(high)? {
        (low, high) = (high, 2.0 * high);
        if high > MOST_NOISE {
            return Err(PrivacyError::Budget(MOST_NOISE, count, epsilon));
        }
    }
    while high - low > 1e-3 * high {
        let middle = (low + high) / 2.0;
        if fits(middle)? { high = middle } else { low = middle }
    }
    Ok(high)
}

/// Promises for different neighbours do not add up.
fn check_neighbours(releases: &[(Mechanism, u64)]) -> Result<(), PrivacyError> {
    let poisson = |mechanism: &Mechanism| matches!(mechanism.sampling(), Sampling::Poisson { .. });
    let first = releases.first().map(|(mechanism, _)| poisson(mechanism));
    match releases.iter().all(|(mechanism, _)| Some(poisson(mechanism)) == first) {
        true => Ok(()),
        false => Err(PrivacyError::Neighbours),
    }
}

fn check_delta(delta: f64) -> Result<(), PrivacyError> {
    if delta > 0.0 && delta < 1.0 { Ok(()) } else { Err(PrivacyError::Delta(delta)) }
}

fn check_epsilon(epsilon: f64) -> Result<(), PrivacyError> {
    if epsilon > 0.0 && epsilon.is_finite() { Ok(()) } else { Err(PrivacyError::Epsilon(epsilon)) }
}
