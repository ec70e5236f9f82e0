//! Dropout whose mask is a hash of the place.

use super::dispatch;

/// The modulus of the hash, 2^31 - 1; see `fedpeft_autodiff::functions`, where the hash is defined.
const PRIME: u64 = (1 << 31) - 1;

/// A mask: the keys of the hash and the threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutMask {
    keys: [u64; 3],
    threshold: f32,
    scale: f32,
}

impl DropoutMask {
    /// The mask of layer `layer` at a step with `seed`, dropping the share `rate`.
    pub fn new(seed: i64, layer: i64, rate: f32) -> Self {
        const SPREAD: i64 = 48_271;
        let prime = PRIME.cast_signed();
        let own = seed.rem_euclid(prime);
        let by_layer = layer.wrapping_mul(SPREAD).rem_euclid(prime);
        let keys = [own, by_layer, (own + by_layer) % prime].map(i64::cast_unsigned);
        Self { keys, threshold: rate * PRIME as f32, scale: 1.0 - rate }
    }

    #[inline(always)]
    fn keeps(&self, place: u64) -> bool {
        let mut value = place;
        for key in self.keys {
            let x = reduce(reduce(value + key));
            let x2 = reduce(reduce(x * x));
            let x4 = reduce(reduce(x2 * x2));
            value = reduce(reduce(x4 * x));
        }
        // Twice reduced, a multiple of the prime may still be the prime itself.
        let value = if value == PRIME { 0 } else { value };
        value as f32 >= self.threshold
    }
}

/// Congruent and smaller: at most 2^31 after two of them, whatever fits 62 bits.
#[inline(always)]
fn reduce(value: u64) -> u64 {
    (value & PRIME) + (value >> 31)
}

/// `y = x / (1 - rate)` where the mask keeps it, 0 elsewhere. The first of `x` is at place `start`.
pub fn dropout(mask: DropoutMask, start: usize, x: &[f32], y: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || {
            for ((place, x), y) in (start as u64..).zip(x).zip(y) {
                *y = if mask.keeps(place) { x / mask.scale } else { 0.0 };
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_as_asked_and_masks_differ_by_seed_and_layer() {
        let x = vec![1.0f32; 100_000];
        let kept = |seed, layer, rate| {
            let mut y = vec![f32::NAN; x.len()];
            dropout(DropoutMask::new(seed, layer, rate), 0, &x, &mut y);
            y
        };
        for rate in [0.05f32, 0.5, 0.9] {
            let y = kept(1 << 60, 3, rate);
            let share = y.iter().filter(|v| **v == 0.0).count() as f32 / x.len() as f32;
            assert!((share - rate).abs() < 0.006, "{share} of {rate}");
            assert!(y.iter().all(|v| *v == 0.0 || (v * (1.0 - rate) - 1.0).abs() < 1e-6));
        }
        let agree = |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| a == b).count() as f32 / 1e5;
        let first = kept(1, 1, 0.5);
        for other in [kept(2, 1, 0.5), kept(1, 2, 0.5)] {
            assert!((agree(&first, &other) - 0.5).abs() < 0.01);
        }
        assert_eq!(first, kept(1, 1, 0.5));
        // Neighbours are independent.
        assert!((agree(&first[1..], &first) - 0.5).abs() < 0.01);
    }

    #[test]
    fn parts_are_those_of_the_whole() {
        let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let mask = DropoutMask::new(-5, 7, 0.3);
        let mut whole = vec![0.0; 1000];
        dropout(mask, 0, &x, &mut whole);
        let mut part = vec![0.0; 400];
        dropout(mask, 600, &x[600..], &mut part);
        assert_eq!(part, whole[600..]);
    }
}
