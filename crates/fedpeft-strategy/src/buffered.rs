//! Buffered asynchronous aggregation (FedBuff, Nguyen et al., arXiv 2106.06639).
//!
//! Updates of one round may have begun with different global adapters. With `x` the present one, and `x_i`, `b_i`,
//! `n_i`, `s_i` the adapter, its base, the examples and the staleness factor of update `i`, the next one is
//!
//! ```text
//! x + sum_i n_i s_i (x_i - b_i) / sum_i n_i
//! ```
//!
//! so that stale updates move it less. The `x_i` are summed as they come; the bases are subtracted at the end, each
//! once with the weight of all updates that began with it, and exactly: only one base at a time is in memory, and no
//! order changes a byte.

use crate::accumulator::{AccumulateError, MAX_WEIGHT, Weight};

/// Weights are multiples of 1/64 of an example, so that staleness can make them smaller.
pub const UNIT: u64 = 64;

/// The weight of an update of `examples` examples and a staleness factor in (0, 1], in multiples of 1/[`UNIT`].
///
/// # Errors
/// No examples, or more than 2^18.
pub fn weight(examples: u64, factor: f64) -> Result<Weight, AccumulateError> {
    if !(1..=MAX_WEIGHT / UNIT).contains(&examples) {
        return Err(AccumulateError::Weight(examples));
    }
    // At most 2^24; a conversion of floats to integers saturates.
    let weight = (examples as f64 * UNIT as f64 * factor).round() as u64;
    Weight::new(weight.max(1))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::{
        accumulator::Accumulator,
        mean::Moved,
        strategy::{FedAvg, Kept, Strategy as _},
    };
    use fedpeft_codec::{Layout, TensorSpec, decode, encode};
    use proptest::prelude::*;

    fn layout(values: usize) -> Layout {
        Layout::new(vec![TensorSpec { name: "bias".into(), shape: vec![values as u64] }]).unwrap()
    }

    fn moved(global: &[u8], sum: &Accumulator, examples: u64) -> Vec<u8> {
        let mut mean = Moved { base: &mut Cursor::new(global), sum, divisor: (examples * UNIT) as f64 };
        let mut moved = Vec::new();
        let kept = Kept { before: None, after: &mut std::io::sink() };
        FedAvg.next(&mut std::io::empty(), kept, &mut mean, &mut moved).unwrap();
        moved
    }

    #[test]
    fn stale_updates_move_the_adapter_less() {
        let (old, global) = (encode(&[1.0, 1.0]), encode(&[2.0, 2.0]));
        let mut sum = Accumulator::new(layout(2)).unwrap();
        let (fresh, stale) = (weight(10, 1.0).unwrap(), weight(30, 0.5).unwrap());
        sum.add(&encode(&[3.0, 2.0]), fresh).unwrap();
        sum.add(&encode(&[1.0, 3.0]), stale).unwrap();
        sum.subtract(&global, fresh.get()).unwrap();
        sum.subtract(&old, stale.get()).unwrap();
        // (10 (1, 0) + 30/2 (0, 2)) / 40
        assert_eq!(decode(&moved(&global, &sum, 40), &layout(2)).unwrap(), [2.25, 2.75]);
    }

    #[test]
    fn weights_are_bounded() {
        assert_eq!(weight(1, 1e-9).unwrap().get(), 1);
        assert_eq!(weight(MAX_WEIGHT / UNIT, 1.0).unwrap().get(), MAX_WEIGHT);
        assert_eq!(weight(MAX_WEIGHT / UNIT + 1, 0.1), Err(AccumulateError::Weight(MAX_WEIGHT / UNIT + 1)));
        assert_eq!(weight(0, 1.0), Err(AccumulateError::Weight(0)));
    }

    proptest! {
        #[test]
        fn fresh_updates_give_their_mean(
            updates in proptest::collection::vec((proptest::collection::vec(-4.0f32..4.0, 6), 1u64..1000), 1..8),
            global in proptest::collection::vec(-4.0f32..4.0, 6),
        ) {
            let (mut buffered, mut plain) =
                (Accumulator::new(layout(6)).unwrap(), Accumulator::new(layout(6)).unwrap());
            let global = encode(&global);
            let mut examples = 0;
            for (values, n) in &updates {
                let weight = weight(*n, 1.0).unwrap();
                buffered.add(&encode(values), weight).unwrap();
                plain.add(&encode(values), Weight::new(*n).unwrap()).unwrap();
                examples += n;
            }
            buffered.subtract(&global, examples * UNIT).unwrap();
            let moved = decode(&moved(&global, &buffered, examples), &layout(6)).unwrap();
            let mean = decode(&plain.mean().unwrap(), &layout(6)).unwrap();
            for (moved, mean) in moved.iter().zip(&mean) {
                prop_assert!((moved - mean).abs() <= 1e-6, "{moved} {mean}");
            }
        }

        #[test]
        fn what_was_added_can_be_subtracted(values in proptest::collection::vec(-65536.0f32..65536.0, 1..20), n in 1u64..1 << 18) {
            let mut sum = Accumulator::new(layout(values.len())).unwrap();
            let global = encode(&vec![0.5; values.len()]);
            sum.add(&encode(&values), weight(n, 1.0).unwrap()).unwrap();
            sum.subtract(&encode(&values), n * UNIT).unwrap();
            prop_assert_eq!(moved(&global, &sum, n), global);
        }
    }
}
