//! The order in which a client sees its examples.

use fedpeft_protocol::{Digest, Round};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// What the order is derived from: equal seeds give equal orders on every machine.
#[derive(Debug, Clone, Copy)]
pub struct OrderSeed<'a> {
    /// Seed of the run.
    pub run: u64,
    /// The round.
    pub round: Round,
    /// Name of the client.
    pub client: &'a str,
}

impl OrderSeed<'_> {
    /// A permutation of `0..count` for one local epoch.
    pub fn permutation(&self, epoch: u32, count: usize) -> Vec<usize> {
        let Self { run, round, client } = self;
        let seed = Digest::of(format!("fedpeft order {run} {round} {epoch} {client}"));
        let mut order: Vec<usize> = (0..count).collect();
        order.shuffle(&mut ChaCha8Rng::from_seed(*seed.as_bytes()));
        order
    }

    /// The seed of what training drops in its batch number `batch`.
    pub fn dropout(&self, batch: u64) -> i64 {
        let Self { run, round, client } = self;
        let seed = Digest::of(format!("fedpeft dropout {run} {round} {batch} {client}"));
        let (first, _) = seed.as_bytes().split_first_chunk().unwrap_or((&[0; 8], &[]));
        i64::from_le_bytes(*first).unsigned_abs().cast_signed().max(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_permutations_and_differ_by_every_part_of_the_seed() {
        let base = OrderSeed { run: 1, round: 1, client: "a" };
        let first = base.permutation(0, 100);
        assert_eq!(first, base.permutation(0, 100));
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..100));
        let others = [
            base.permutation(1, 100),
            OrderSeed { run: 2, ..base }.permutation(0, 100),
            OrderSeed { round: 2, ..base }.permutation(0, 100),
            OrderSeed { client: "b", ..base }.permutation(0, 100),
        ];
        assert!(others.iter().all(|other| *other != first));
    }

    #[test]
    fn the_order_is_pinned() {
        // Runs must stay reproducible across releases: a change here is a change of results.
        let order = OrderSeed { run: 7, round: 3, client: "client-1" }.permutation(2, 8);
        assert_eq!(order, PINNED);
    }

    const PINNED: [usize; 8] = [5, 6, 3, 4, 1, 7, 0, 2];
}
