//! Randomness of an encoder: the same seed gives the same bytes on every machine.

use fedpeft_protocol::{Digest, Round};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Seed of everything that is random in one encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl Seed {
    /// The seed for what `sender` encodes in `round` of a run with seed `run`. No two of them share a stream, so
    /// that errors of different senders are independent and average out.
    pub fn new(run: u64, round: Round, sender: &str) -> Self {
        Self(*Digest::of(format!("fedpeft codec\n{run}\n{round}\n{sender}")).as_bytes())
    }

    /// Draws for stochastic rounding.
    pub(crate) fn rounding(self) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.0)
    }

    /// The seed of drawn indices, which is sent.
    pub(crate) fn indices(self) -> u64 {
        let mut draws = ChaCha8Rng::from_seed(self.0);
        draws.set_stream(1);
        draws.next_u64()
    }
}

/// `count` of `0..values`, each subset equally likely, ascending (Knuth's algorithm S, TAOCP 3.4.2).
pub(crate) fn draw_indices(seed: u64, count: usize, values: usize) -> Vec<u32> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut draws = ChaCha8Rng::from_seed(key);
    let (mut indices, mut missing) = (Vec::with_capacity(count), count as u64);
    for index in 0..values {
        let left = (values - index) as u64;
        // Below `left`, with a bias of less than 2^-32.
        let draw = (u128::from(draws.next_u64()) * u128::from(left)) >> 64;
        if (draw as u64) < missing {
            indices.push(index as u32);
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_pinned() {
        // A change here makes old messages unreadable.
        assert_eq!(draw_indices(7, 4, 20), PINNED);
        assert_eq!(draw_indices(7, 20, 20), (0..20).collect::<Vec<_>>());
    }

    const PINNED: [u32; 4] = [2, 7, 13, 17];

    #[test]
    fn every_index_is_equally_likely() {
        let (count, values, draws) = (3, 10, 20_000u32);
        let mut hits = [0u32; 10];
        for seed in 0..u64::from(draws) {
            let indices = draw_indices(seed, count, values);
            assert!(indices.len() == count && indices.is_sorted_by(|a, b| a < b));
            indices.iter().for_each(|index| hits[*index as usize] += 1);
        }
        // 6000 expected, standard deviation 65.
        assert!(hits.iter().all(|hits| hits.abs_diff(6000) < 325), "{hits:?}");
    }

    #[test]
    fn senders_and_rounds_have_seeds_of_their_own() {
        let seeds = [Seed::new(1, 2, "a"), Seed::new(1, 2, "b"), Seed::new(1, 3, "a"), Seed::new(2, 2, "a")];
        for (at, seed) in seeds.iter().enumerate() {
            assert!(seeds[at + 1..].iter().all(|other| other != seed));
        }
        assert_eq!(Seed::new(1, 2, "a").indices(), Seed::new(1, 2, "a").indices());
    }
}
