use std::io::{self, Cursor, Read, Seek};

use fedpeft_codec::{LowRank, TensorSpec, encode};
use proptest::prelude::*;

use super::*;

/// A pair `[rank, inputs]`, `[outputs, rank]` around a bias of 2.
fn layout(rank: u64, inputs: u64, outputs: u64) -> Layout {
    let spec = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), shape: shape.to_vec() };
    let tensors = [
        spec("q.lora_A.weight", &[rank, inputs]),
        spec("q.bias", &[2]),
        spec("q.lora_B.weight", &[outputs, rank]),
    ];
    Layout::new(tensors.into()).unwrap()
}

fn empty(layout: &Layout) -> ProductMean {
    ProductMean::new(layout.clone(), Pair::all(layout).unwrap()).unwrap()
}

fn sum(layout: &Layout, updates: &[(Vec<f32>, u64)]) -> ProductMean {
    let mut sum = empty(layout);
    for (values, weight) in updates {
        sum.add(&mut Cursor::new(encode(values)), Weight::new(*weight).unwrap()).unwrap();
    }
    sum
}

/// The mean adapter and what was lost.
fn mean(sum: &ProductMean) -> (Vec<f64>, f64) {
    let mut mean = Vec::new();
    let mut each = |chunk: &[f64]| {
        mean.extend_from_slice(chunk);
        Ok(())
    };
    let lost = sum.each_mean(&mut each).unwrap();
    (mean, lost)
}

fn real(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// `B A` of an adapter of that layout.
fn product(layout: &Layout, values: &[f64]) -> Vec<f64> {
    let pair = &Pair::all(layout).unwrap()[0];
    let (a, b) = (&values[pair.a.clone()], &values[pair.b.clone()]);
    let entry = |row: usize, column: usize| -> f64 {
        (0..pair.rank).map(|at| b[row * pair.rank + at] * a[at * pair.inputs + column]).sum()
    };
    (0..pair.outputs).flat_map(|row| (0..pair.inputs).map(move |column| entry(row, column))).collect()
}

fn close(got: &[f64], wanted: &[f64], tolerance: f64) -> bool {
    let size = wanted.iter().fold(1e-30f64, |largest, value| largest.max(value.abs()));
    got.len() == wanted.len()
        && got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() <= tolerance * size)
}

/// Two clients that changed the same entry the same way, with factors of opposite signs: both updates are `[[2, 0], [0, 0]]`,
/// and so is their mean. The means of the factors are zero.
#[test]
fn the_mean_of_updates_is_not_that_of_their_factors() {
    let layout = layout(1, 2, 2);
    let updates = [(vec![1.0, 0.0, 5.0, 6.0, 2.0, 0.0], 3), (vec![-1.0, 0.0, 1.0, 2.0, -2.0, 0.0], 3)];
    let plain: Vec<f64> =
        real(&updates[0].0).iter().zip(real(&updates[1].0)).map(|(a, b)| (a + b) / 2.0).collect();
    assert_eq!(product(&layout, &plain), [0.0; 4]);

    let (mean, lost) = mean(&sum(&layout, &updates));
    assert!(close(&product(&layout, &mean), &[2.0, 0.0, 0.0, 0.0], 1e-12), "{mean:?}");
    assert_eq!(mean[2..4], [3.0, 4.0], "the rest is averaged as ever");
    assert!((mean[0].abs() - 1.0).abs() < 1e-12 && mean[1].abs() < 1e-12, "rows of A have length 1");
    assert!(lost < 1e-12);
}

/// The next global adapter, of plain means, and the residual that goes with it.
fn exact(sum: &ProductMean, before: Option<&[f32]>) -> (Vec<f32>, Vec<f32>) {
    let (mut adapter, mut out) = (Vec::new(), Vec::new());
    sum.each_factor(&mut |chunk| {
        adapter.extend(chunk.iter().map(|value| *value as f32));
        Ok(())
    })
    .unwrap();
    let mut before = before.map(|values| Cursor::new(encode(values)));
    sum.residual(Residual {
        before: before.as_mut().map(|before| before as &mut dyn Spool),
        adapter: &mut Cursor::new(encode(&adapter)),
        out: &mut out,
    })
    .unwrap();
    (adapter, out.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

/// The same two clients: of their factors nothing is left, and the residual is the whole update.
#[test]
fn what_mean_factors_do_not_hold_is_the_residual() {
    let layout = layout(1, 2, 2);
    let updates = [(vec![1.0, 0.0, 5.0, 6.0, 2.0, 0.0], 3), (vec![-1.0, 0.0, 1.0, 2.0, -2.0, 0.0], 3)];
    let sum = sum(&layout, &updates);
    let (adapter, residual) = exact(&sum, None);
    assert_eq!(adapter, [0.0, 0.0, 3.0, 4.0, 0.0, 0.0]);
    assert_eq!(residual, [2.0, 0.0, 0.0, 0.0]);
    // What was there stays.
    let (_, residual) = exact(&sum, Some(&[0.5, 1.0, -1.0, 0.25]));
    assert_eq!(residual, [2.5, 1.0, -1.0, 0.25]);
}

#[test]
fn a_residual_that_leaves_the_range_is_named() {
    let layout = layout(1, 2, 2);
    let sum = sum(&layout, &[(vec![256.0, 0.0, 0.0, 0.0, 200.0, 0.0], 1), (vec![0.0; 6], 1)]);
    let write = |before: f32| {
        sum.residual(Residual {
            before: Some(&mut Cursor::new(encode(&[before; 4]))),
            adapter: &mut Cursor::new(encode(&[0.0; 6])),
            out: &mut io::sink(),
        })
    };
    write(30_000.0).unwrap();
    let error = write(60_000.0).unwrap_err().to_string();
    assert!(error.contains("of q reaches 8.56e4") && error.contains("learning_rate"), "{error}");
    let nothing = empty(&layout).residual(Residual {
        before: None,
        adapter: &mut Cursor::new(encode(&[0.0; 6])),
        out: &mut io::sink(),
    });
    assert!(matches!(nothing, Err(SpoolError::Accumulate(AccumulateError::Empty))));
}

/// `diag(3, 0)` and `diag(0, 1)`, weights 1 to 3: the mean is `diag(0.75, 0.75)`; of rank 1 half of its square is lost.
#[test]
fn what_does_not_fit_the_rank_is_counted() {
    let updates = [(vec![1.0, 0.0, 0.0, 0.0, 3.0, 0.0], 1), (vec![0.0, 1.0, 0.0, 0.0, 0.0, 1.0], 3)];
    let (_, lost) = mean(&sum(&layout(1, 2, 2), &updates));
    assert!((lost - 0.5).abs() < 1e-12, "{lost}");
    let full = layout(2, 2, 2);
    let padded = |values: &[f32]| LowRank::new(&full, 1).unwrap().pad(values);
    let wide: Vec<_> = updates.iter().map(|(values, weight)| (padded(values), *weight)).collect();
    let (mean, lost) = mean(&sum(&layout(2, 2, 2), &wide));
    assert!(close(&product(&layout(2, 2, 2), &mean), &[0.75, 0.0, 0.0, 0.75], 1e-12), "{mean:?}");
    assert!(lost < 1e-12);
}

#[test]
fn directions_that_nothing_uses_can_still_be_learnt() {
    let layout = layout(2, 3, 2);
    let a = [0.5, 0.25, -0.5, 1.0, 0.0, 2.0];
    let untrained: Vec<f32> = [&a[..], &[0.0; 2], &[0.0; 4]].concat();
    let (mean, lost) = mean(&sum(&layout, &[(untrained.clone(), 3), (untrained, 5)]));
    assert_eq!(mean, [&real(&a)[..], &[0.0; 6]].concat());
    assert_eq!(lost, 0.0);
}

#[test]
fn adapters_without_pairs_are_refused() {
    let spec = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), shape: shape.to_vec() };
    for tensors in [
        vec![spec("head.weight", &[3, 4])],
        vec![spec("q.lora_B.weight", &[3, 4])],
        vec![spec("q.lora_A.weight", &[4, 3])],
        vec![spec("q.lora_A.weight", &[2, 3]), spec("q.lora_B.weight", &[3, 4])],
        vec![spec("q.lora_A.weight", &[6]), spec("q.lora_B.weight", &[3, 6])],
    ] {
        assert_eq!(Pair::all(&Layout::new(tensors).unwrap()), Err(AccumulateError::NoPairs));
    }
}

#[test]
fn bad_updates_leave_no_trace() {
    let layout = layout(1, 2, 2);
    let weight = Weight::new(2).unwrap();
    let mut sum = sum(&layout, &[(vec![1.0; 6], 3)]);
    let before = sum.clone();
    let mut refused =
        |values: &[f32]| sum.add(&mut Cursor::new(encode(values)), weight).unwrap_err().to_string();
    assert!(refused(&[1.0; 5]).contains("24"));
    assert!(refused(&[1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0]).contains("NaN"));
    let error = refused(&[300.0, 1.0, 1.0, 1.0, 1.0, 300.0]);
    assert!(error.contains("update of q may reach 9e4"), "{error}");
    assert_eq!(sum, before);
    assert!(matches!(
        empty(&layout).each_mean(&mut |_| Ok(())),
        Err(SpoolError::Accumulate(AccumulateError::Empty))
    ));
}

/// A file that breaks once it was read `left` times.
struct Breaking(Cursor<Vec<u8>>, usize);

impl Read for Breaking {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1.checked_sub(1).ok_or(io::Error::other("broken"))?;
        self.0.read(bytes)
    }
}

impl Seek for Breaking {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn half_an_adapter_is_never_part_of_a_mean() {
    let layout = layout(1, 2, 2);
    let bytes = encode(&[1.0; 6]).to_vec();
    let mut whole = 0;
    for reads in 0..20 {
        let mut sum = sum(&layout, &[(vec![2.0; 6], 3)]);
        let before = sum.clone();
        match sum.add(&mut Breaking(Cursor::new(bytes.clone()), reads), Weight::new(1).unwrap()) {
            Ok(()) => whole += 1,
            Err(_) if sum == before => {}
            Err(_) => {
                let used = sum.each_mean(&mut |_| Ok(()));
                assert!(matches!(used, Err(SpoolError::Accumulate(AccumulateError::Spoilt))), "{reads}");
            }
        }
    }
    assert!((1..20).contains(&whole));
}

fn updates() -> impl Strategy<Value = (Layout, Vec<(Vec<f32>, u64)>)> {
    (1u64..4, 3u64..6, 3u64..6).prop_flat_map(|(rank, inputs, outputs)| {
        let layout = layout(rank, inputs, outputs);
        let value = prop_oneof![6 => -1f32..1.0, 1 => Just(0.0), 1 => -100f32..100.0];
        let update = (prop::collection::vec(value, layout.values()), 1u64..5000);
        (Just(layout), prop::collection::vec(update, 1..8))
    })
}

proptest! {
    #[test]
    fn order_and_grouping_do_not_change_a_byte(
        ((layout, updates), seed, split) in (updates(), any::<usize>(), 0usize..8),
    ) {
        let flat = sum(&layout, &updates);
        let mut shuffled = updates.clone();
        shuffled.rotate_left(seed % updates.len());
        shuffled.reverse();
        prop_assert_eq!(&sum(&layout, &shuffled), &flat);
        let (left, right) = shuffled.split_at(split.min(shuffled.len()));
        let mut merged = empty(&layout);
        for part in [right, left] {
            merged.merge(&sum(&layout, part)).unwrap();
        }
        prop_assert_eq!(&merged, &flat);
        prop_assert_eq!(mean(&merged), mean(&flat));
    }

    /// Factors and residual together are the mean of the updates, on top of the residual that all began with: but for one
    /// rounding of each entry to `f32`.
    #[test]
    fn nothing_of_the_mean_update_is_lost(
        ((layout, updates), before, seed) in (updates(), prop::collection::vec(-10f32..10.0, 25), any::<usize>()),
    ) {
        let flat = sum(&layout, &updates);
        let pair = &Pair::all(&layout).unwrap()[0];
        let before = &before[..pair.inputs * pair.outputs];
        let (adapter, residual) = exact(&flat, Some(before));
        let total: u64 = updates.iter().map(|(_, weight)| weight).sum();
        let held = product(&layout, &real(&adapter));
        for (at, value) in residual.iter().enumerate() {
            let share = |(values, weight): &(Vec<f32>, u64)| {
                product(&layout, &real(values))[at] * *weight as f64 / total as f64
            };
            let mean: f64 = updates.iter().map(share).sum();
            let wanted = f64::from(before[at]) + mean;
            let size = f64::from(value.abs()) * f64::from(f32::EPSILON) + 1e-9 * (1.0 + wanted.abs() + held[at].abs());
            let got = f64::from(*value) + held[at];
            prop_assert!((got - wanted).abs() <= size, "{got} {wanted}");
        }
        let mut shuffled = updates.clone();
        shuffled.rotate_left(seed % updates.len());
        shuffled.reverse();
        let (again, rest) = exact(&sum(&layout, &shuffled), Some(before));
        prop_assert_eq!((encode(&again), encode(&rest)), (encode(&adapter), encode(&residual)));
    }

    #[test]
    fn the_mean_update_is_that_of_the_updates_as_far_as_the_rank_goes((layout, updates) in updates()) {
        let (adapter, lost) = mean(&sum(&layout, &updates));
        let total: u64 = updates.iter().map(|(_, weight)| weight).sum();
        let mut wanted = vec![0.0; product(&layout, &adapter).len()];
        for (values, weight) in &updates {
            let share = *weight as f64 / total as f64;
            wanted.iter_mut().zip(product(&layout, &real(values))).for_each(|(sum, value)| *sum += share * value);
        }
        let rest: Vec<_> = wanted.iter().zip(product(&layout, &adapter)).map(|(wanted, got)| wanted - got).collect();
        let size = square(&wanted);
        prop_assert!((square(&rest) - lost * size).abs() <= 1e-9 * size, "{} {}", square(&rest), lost);
        // Nothing is lost of one client's update, nor where the rank is full.
        let pair = &Pair::all(&layout).unwrap()[0];
        if updates.len() == 1 || pair.rank == pair.inputs.min(pair.outputs) {
            prop_assert!(lost <= 1e-12, "{}", lost);
        }
        let plain = sum(&layout, &updates).sum.means(0..layout.values());
        prop_assert_eq!(&adapter[pair.a.end..pair.b.start], &plain[pair.a.end..pair.b.start]);
    }
}
