//! Seeded sampling of a round's cohort.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Sets the stream of cohort sampling apart from every other use of a run's seed.
const DOMAIN: &[u8; 16] = b"fedpeft/cohort/1";

/// Samples `size` of `present` uniformly without replacement, or all of them where there are fewer.
///
/// The sample depends on the seed, the round and the *set* of present clients: their order and repetitions do
/// not matter. It comes sorted.
pub fn sample<C: Ord + Clone>(present: &[C], size: usize, seed: u64, round: u32) -> Vec<C> {
    sample_by(present, size, &key(seed, round))
}

/// [`sample`], by a key that nobody should know who is not to know the sample.
pub fn sample_by<C: Ord + Clone>(present: &[C], size: usize, key: &[u8; 32]) -> Vec<C> {
    let mut clients = set(present);
    let size = size.min(clients.len());
    let mut rng = ChaCha8Rng::from_seed(*key);
    // The first `size` steps of a Fisher-Yates shuffle.
    for drawn in 0..size {
        let other = drawn + below(&mut rng, clients.len() - drawn);
        clients.swap(drawn, other);
    }
    clients.truncate(size);
    clients.sort_unstable();
    clients
}

/// Samples each of `present` by itself with probability `rate`: a Poisson sample, of any size. It comes sorted, and depends on
/// nothing but the key and the set of present clients.
pub fn poisson_by<C: Ord + Clone>(present: &[C], rate: f64, key: &[u8; 32]) -> Vec<C> {
    let mut clients = set(present);
    let mut rng = ChaCha8Rng::from_seed(*key);
    // Of 2^53 values of equal probability.
    clients.retain(|_| ((rng.next_u64() >> 11) as f64) < rate * (1u64 << 53) as f64);
    clients
}

fn set<C: Ord + Clone>(present: &[C]) -> Vec<C> {
    let mut clients = present.to_vec();
    clients.sort_unstable();
    clients.dedup();
    clients
}

fn key(seed: u64, round: u32) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..12].copy_from_slice(&round.to_le_bytes());
    key[16..].copy_from_slice(DOMAIN);
    key
}

/// A uniform index below `bound` (at least 1). Written out, because a cohort must stay the same when a
/// library changes how it draws ranges.
fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    let bound = bound as u64;
    // Values past the last whole multiple of `bound` would favour small indices: draw again.
    let past = u64::MAX - u64::MAX % bound;
    loop {
        let value = rng.next_u64();
        if value < past {
            return (value % bound) as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cohort_is_pinned() {
        let clients: Vec<u32> = (0..20).collect();
        assert_eq!(sample(&clients, 5, 7, 1), sample(&clients, 5, 7, 1));
        assert_eq!(sample(&clients, 5, 7, 1), PINNED);
        assert_ne!(sample(&clients, 5, 7, 2), PINNED);
        assert_ne!(sample(&clients, 5, 8, 1), PINNED);
    }

    /// Changing it changes the outcome of every recorded run.
    const PINNED: [u32; 5] = [0, 2, 12, 16, 19];

    #[test]
    fn every_client_is_drawn_equally_often() {
        let clients: Vec<u32> = (0..10).collect();
        let mut drawn = [0u32; 10];
        for round in 0..10_000 {
            sample(&clients, 3, 42, round).iter().for_each(|client| drawn[*client as usize] += 1);
        }
        // Binomial(10,000, 0.3): standard deviation 46; five of them.
        assert!(drawn.iter().all(|n| n.abs_diff(3000) < 230), "{drawn:?}");
    }

    #[test]
    fn poisson_samples_have_any_size_and_the_right_one_in_the_mean() {
        let clients: Vec<u32> = (0..50).collect();
        let sizes: Vec<usize> =
            (0..400u32).map(|round| poisson_by(&clients, 0.2, &key(7, round)).len()).collect();
        let mean = sizes.iter().sum::<usize>() as f64 / 400.0;
        // Ten, with a standard deviation of 2.8 / 20.
        assert!((mean - 10.0).abs() < 0.5, "{mean}");
        assert!(sizes.iter().max() > sizes.iter().min());
        assert_eq!(poisson_by(&clients, 1.0, &key(7, 1)), clients);
        assert!(poisson_by(&clients, 0.0, &key(7, 1)).is_empty());
    }

    proptest! {
        #[test]
        fn a_cohort_is_a_subset_without_repeats(
            clients in proptest::collection::vec(0u16..500, 0..60), size in 0usize..80, seed: u64, round: u32,
        ) {
            let cohort = sample(&clients, size, seed, round);
            let mut distinct = clients.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(cohort.len(), size.min(distinct.len()));
            prop_assert!(cohort.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(cohort.iter().all(|client| distinct.contains(client)));
        }

        #[test]
        fn order_and_repeats_of_presence_do_not_matter(
            clients in proptest::collection::vec(0u16..500, 1..60).prop_shuffle(), size in 1usize..40, seed: u64,
        ) {
            let mut other: Vec<_> = clients.iter().rev().copied().collect();
            other.push(clients[0]);
            prop_assert_eq!(sample(&clients, size, seed, 3), sample(&other, size, seed, 3));
        }
    }
}
