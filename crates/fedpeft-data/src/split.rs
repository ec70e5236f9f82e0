//! Holding out a share of one source.

use crate::draw::{Draw, Purpose};
use crate::labels::Strata;
use crate::spec::Fraction;

/// Positions to train on and positions held out, both ascending. Of every class the same share is held out,
/// rounded to whole examples.
pub(crate) fn stratified(strata: &Strata, fraction: Fraction, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let mut classes = vec![Vec::new(); strata.count as usize];
    for (position, class) in (0..).zip(&strata.of) {
        classes[*class as usize].push(position);
    }
    let mut draw = Draw::new(seed, Purpose::Split);
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for mut class in classes {
        draw.shuffle(&mut class);
        let share = (class.len() as f64 * fraction.get()).round() as usize;
        train.extend(class.split_off(share.min(class.len())));
        held_out.extend(class);
    }
    train.sort_unstable();
    held_out.sort_unstable();
    (train, held_out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_example_is_on_one_side_and_classes_keep_their_shares(
            of in prop::collection::vec(0_u32..5, 0..300), fraction in 0.01_f64..0.99, seed: u64,
        ) {
            let strata = Strata { count: 5, of };
            let (train, held_out) = stratified(&strata, Fraction::new(fraction).unwrap(), seed);
            let mut all: Vec<u32> = train.iter().chain(&held_out).copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..strata.of.len() as u32).collect::<Vec<_>>());
            for class in 0..5 {
                let count = |side: &[u32]| side.iter().filter(|i| strata.of[**i as usize] == class).count();
                let whole = (count(&train) + count(&held_out)) as f64;
                prop_assert!((count(&held_out) as f64 - whole * fraction).abs() <= 0.5);
            }
        }
    }
}
