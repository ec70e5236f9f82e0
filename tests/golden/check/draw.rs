//! Adapters that are somewhere else than where a method begins.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Every value moved by up to a fifth: from zero, that makes something.
pub fn perturbed(initial: &[f32]) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    initial.iter().map(|value| value + rng.random_range(-0.2..0.2)).collect()
}
