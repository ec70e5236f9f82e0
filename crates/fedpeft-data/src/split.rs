//! Holding out a share of one source.

use std::collections::{BTreeMap, BTreeSet};

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

/// Divides a client's `examples` into those to train on and those held back, in the order they had. As many are held
/// back as make up `fraction`, rounded down, of each class in its share up to one example.
pub(crate) fn held_back(
    examples: &[u32],
    class_of: &[u32],
    fraction: Fraction,
    draw: &mut Draw,
) -> (Vec<u32>, Vec<u32>) {
    let mut classes = BTreeMap::<u32, Vec<u32>>::new();
    for example in examples {
        classes.entry(class_of[*example as usize]).or_default().push(*example);
    }
    // Among few examples, not always the same classes go without.
    let mut classes: Vec<Vec<u32>> = classes.into_values().collect();
    draw.shuffle(&mut classes);
    for class in &mut classes {
        draw.shuffle(class);
    }
    // Every so many, in a row in which each class is together.
    let passed = |count: usize| (count as f64 * fraction.get()).floor();
    let row = classes.into_iter().flatten().enumerate();
    let kept: BTreeSet<u32> =
        row.filter(|(at, _)| passed(at + 1) > passed(*at)).map(|(_, example)| example).collect();
    examples.iter().partition(|example| !kept.contains(example))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn clients_hold_back_their_share_of_every_class(
            of in prop::collection::vec(0_u32..5, 1..200), fraction in 0.01_f64..=0.5, seed: u64,
        ) {
            let examples: Vec<u32> = (0..of.len() as u32).rev().collect();
            let fraction = Fraction::new(fraction).unwrap();
            let mut draw = Draw::new(seed, Purpose::ClientHoldout);
            let (train, held) = held_back(&examples, &of, fraction, &mut draw);
            prop_assert_eq!(held.len(), (of.len() as f64 * fraction.get()).floor() as usize);
            prop_assert!(!train.is_empty() && train.is_sorted_by(|a, b| a > b));
            let mut all = [train, held.clone()].concat();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..of.len() as u32));
            for class in 0..5 {
                let whole = of.iter().filter(|c| **c == class).count() as f64;
                let count = held.iter().filter(|i| of[**i as usize] == class).count() as f64;
                prop_assert!((count - whole * fraction.get()).abs() < 1.0 + 1e-9);
            }
        }

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
