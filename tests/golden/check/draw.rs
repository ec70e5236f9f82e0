//! Random numbers, the same every time.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Every value moved by up to a fifth: an adapter that is somewhere else than where its method begins.
pub fn perturbed(initial: &[f32]) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    initial.iter().map(|value| value + rng.random_range(-0.2..0.2)).collect()
}

/// `count` of the places `0..len`, or all of them where there are no more.
pub fn places(len: usize, count: usize) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(len as u64);
    rand::seq::index::sample(&mut rng, len, count.min(len)).into_vec()
}
