//! Noise that privacy may rest on: integers of the discrete Gaussian distribution from a cryptographic generator.
//!
//! Values that are released are multiples of a grid, and the noise on them is an integer of standard deviation
//! [`SIGMA`], drawn exactly (Canonne, Kamath and Steinke 2020, arXiv 2004.00010). It satisfies the same concentrated
//! privacy as the continuous Gaussian (their theorem 4), and none of its bits tells anything about the value below it,
//! as those of floating-point noise do (Mironov 2012).
//!
//! The generator is ChaCha20, its key HKDF-SHA256 (RFC 5869) of a [`NoiseSecret`] and a context.

mod exact;

use std::fmt;

use hkdf::Hkdf;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Standard deviation of the noise on the integers of a grid.
pub const SIGMA: u64 = 1 << 20;
/// Largest standard deviation that can be drawn.
const MOST_SIGMA: u64 = 1 << 24;

/// Sets this use of a secret apart from every other.
const DOMAIN: &[u8] = b"fedpeft/noise/1";

/// Why there is no noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoiseError {
    /// Text that is no secret; it is not repeated.
    #[error("a noise secret is 64 hexadecimal digits: make one with `openssl rand -hex 32`")]
    Secret,
    /// The machine gave no random bytes.
    #[error("the operating system gave no random bytes for a noise secret: {0}")]
    Random(getrandom::Error),
    /// A standard deviation that is not drawn.
    #[error("noise has a standard deviation of 1 to {MOST_SIGMA} steps of its grid, not {0}")]
    Scale(u64),
}

/// 32 bytes that nobody else may know: who does can take the noise off again. Forgotten with an overwrite.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NoiseSecret([u8; 32]);

impl NoiseSecret {
    /// A new one, from the operating system.
    ///
    /// # Errors
    /// [`NoiseError::Random`].
    pub fn random() -> Result<Self, NoiseError> {
        let mut secret = Self([0; 32]);
        getrandom::fill(&mut secret.0).map_err(NoiseError::Random)?;
        Ok(secret)
    }

    /// The secret that 64 hexadecimal digits spell; space around them is no part of it.
    ///
    /// # Errors
    /// [`NoiseError::Secret`].
    pub fn from_hex(digits: &str) -> Result<Self, NoiseError> {
        let mut secret = Self([0; 32]);
        hex::decode_to_slice(digits.trim(), &mut secret.0).map_err(|_| NoiseError::Secret)?;
        Ok(secret)
    }

    /// A secret of one context, from which nobody learns this one: HKDF-SHA256. `["a", "bc"]` is not `["ab", "c"]`.
    pub fn derive(&self, context: &[&str]) -> Zeroizing<[u8; 32]> {
        let (mut key, _) = Hkdf::<Sha256>::extract(Some(DOMAIN), &self.0);
        let mut info = Vec::new();
        for part in context {
            info.extend_from_slice(&(part.len() as u64).to_le_bytes());
            info.extend_from_slice(part.as_bytes());
        }
        // The first block of HKDF-Expand, as the HMAC that it is: that cannot fail.
        info.push(1);
        let (mut seed, _) = Hkdf::<Sha256>::extract(Some(&key), &info);
        key.zeroize();
        let derived = Zeroizing::new(seed.into());
        seed.zeroize();
        derived
    }
}

impl From<[u8; 32]> for NoiseSecret {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for NoiseSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NoiseSecret(..)")
    }
}

/// A standard deviation in steps of a grid, 1 to 2^24.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale(u64);

impl Scale {
    /// Checks it.
    ///
    /// # Errors
    /// [`NoiseError::Scale`].
    pub fn new(sigma: u64) -> Result<Self, NoiseError> {
        if (1..=MOST_SIGMA).contains(&sigma) { Ok(Self(sigma)) } else { Err(NoiseError::Scale(sigma)) }
    }
}

/// Noise of one release: the same secret and context give the same noise, so that a release that is computed again
/// after a crash is the same release.
///
/// Two *different* sums with the same noise would give away their difference. A context therefore names all that the
/// sum was made of: the run, the round, and a digest of the updates in it.
pub struct NoiseStream(ChaCha20Rng);

impl NoiseStream {
    /// The noise of a context, as a list of parts: `["a", "bc"]` is not `["ab", "c"]`.
    pub fn new(secret: &NoiseSecret, context: &[&str]) -> Self {
        Self(ChaCha20Rng::from_seed(*secret.derive(context)))
    }

    /// One value of standard deviation [`SIGMA`]; below 2^28 in magnitude.
    pub fn gaussian(&mut self) -> i64 {
        exact::gaussian(&mut self.0, SIGMA)
    }

    /// Values of standard deviation [`SIGMA`], the same that as many calls of [`Self::gaussian`] give.
    pub fn fill(&mut self, out: &mut [i64]) {
        for value in out {
            *value = self.gaussian();
        }
    }

    /// One value of another standard deviation.
    pub fn gaussian_with(&mut self, sigma: Scale) -> i64 {
        exact::gaussian(&mut self.0, sigma.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(secret: u8, context: &[&str]) -> Vec<i64> {
        let mut values = vec![0; 64];
        NoiseStream::new(&[secret; 32].into(), context).fill(&mut values);
        values
    }

    #[test]
    fn a_release_that_is_computed_again_has_the_same_noise_and_any_other_does_not() {
        let noise = drawn(1, &["run", "7"]);
        assert_eq!(noise, drawn(1, &["run", "7"]));
        for other in [&["run", "8"][..], &["run7"], &["ru", "n7"], &["run", "7", ""], &[]] {
            assert_ne!(noise, drawn(1, other), "{other:?}");
        }
        assert_ne!(noise, drawn(2, &["run", "7"]));
    }

    #[test]
    fn filling_in_parts_is_filling_at_once() {
        let mut stream = NoiseStream::new(&[1; 32].into(), &["run", "7"]);
        let mut parts = vec![0; 64];
        let (first, last) = parts.split_at_mut(17);
        stream.fill(first);
        stream.fill(last);
        assert_eq!(parts, drawn(1, &["run", "7"]));
    }

    /// Changing it changes what a release after a crash is.
    #[test]
    fn noise_is_pinned() {
        assert_eq!(drawn(1, &["run", "7"])[..4], PINNED);
    }

    const PINNED: [i64; 4] = [109_188, -233_545, -1_159_023, -1_072_753];

    #[test]
    fn the_key_is_hkdf_of_the_context() {
        let info = [&3u64.to_le_bytes()[..], b"run", &1u64.to_le_bytes(), b"7"].concat();
        let mut seed = [0; 32];
        Hkdf::<Sha256>::new(Some(DOMAIN), &[1; 32]).expand(&info, &mut seed).unwrap();
        let mut wanted = NoiseStream(ChaCha20Rng::from_seed(seed));
        assert_eq!(wanted.gaussian(), drawn(1, &["run", "7"])[0]);
    }

    #[test]
    fn secrets_are_read_and_never_shown() {
        let digits = "00ff".repeat(16);
        let secret = NoiseSecret::from_hex(&format!(" {digits}\n")).unwrap();
        assert_eq!((secret.0[0], secret.0[31]), (0, 255));
        assert_eq!(format!("{secret:?}"), "NoiseSecret(..)");
        for bad in ["", "00ff", &"0g".repeat(32), &"00".repeat(33)] {
            let error = NoiseSecret::from_hex(bad).unwrap_err();
            assert_eq!(error, NoiseError::Secret);
            assert!(bad.is_empty() || !error.to_string().contains(bad));
        }
        assert_ne!(NoiseSecret::random().unwrap().0, NoiseSecret::random().unwrap().0);
    }

    #[test]
    fn other_deviations_are_bounded() {
        for bad in [0, MOST_SIGMA + 1, u64::MAX] {
            assert_eq!(Scale::new(bad), Err(NoiseError::Scale(bad)));
        }
        let mut stream = NoiseStream::new(&[1; 32].into(), &[]);
        for sigma in [1, 1000, MOST_SIGMA] {
            let scale = Scale::new(sigma).unwrap();
            let square: f64 = (0..20_000).map(|_| (stream.gaussian_with(scale) as f64).powi(2)).sum();
            let ratio = square / 20_000.0 / (sigma * sigma) as f64;
            assert!((ratio - 1.0).abs() < 0.05, "{sigma}: {ratio}");
        }
    }
}
