use std::io::Cursor;

use fedpeft_codec::{TensorSpec, encode};
use proptest::prelude::*;

use super::*;
use crate::accumulator::MAX_MAGNITUDE;

fn layout(values: usize) -> Layout {
    Layout::new(vec![TensorSpec { name: "bias".into(), shape: vec![values as u64] }]).unwrap()
}

fn gathered<'a>(updates: impl IntoIterator<Item = &'a (Vec<f32>, u64)>) -> Vec<Gathered> {
    let gathered = updates.into_iter().map(|(values, weight)| Gathered {
        adapter: Box::new(Cursor::new(encode(values))),
        weight: Weight::new(*weight).unwrap(),
    });
    gathered.collect()
}

fn aggregated(rule: RobustRule, updates: &mut [Gathered], values: usize) -> Vec<f64> {
    let mut result = Vec::new();
    let mut each = |chunk: &[f64]| {
        result.extend_from_slice(chunk);
        Ok(())
    };
    rule.aggregate(&layout(values), updates, &mut each).unwrap();
    result
}

fn of(rule: RobustRule, updates: &[(Vec<f32>, u64)]) -> Vec<f64> {
    aggregated(rule, &mut gathered(updates), updates[0].0.len())
}

fn single(values: &[f32]) -> Vec<(Vec<f32>, u64)> {
    values.iter().map(|value| (vec![*value], 1)).collect()
}

const KRUM: RobustRule = RobustRule::Krum { byzantine: 1, keep: 1 };
const MULTI: RobustRule = RobustRule::Krum { byzantine: 1, keep: 2 };
const RFA: RobustRule = RobustRule::GeometricMedian { iterations: 4, smoothing: 1e-6 };

#[test]
fn medians_and_trimmed_means_are_as_computed_by_hand() {
    use RobustRule::{Median, TrimmedMean};
    assert_eq!(of(Median, &single(&[7.0, -1.0, 2.0])), [2.0]);
    assert_eq!(of(Median, &single(&[7.0, -1.0, 2.0, 4.0])), [3.0]);
    assert_eq!(of(Median, &single(&[5.5])), [5.5]);
    let updates = [(vec![1.0, 9.0], 1), (vec![2.0, 7.0], 500), (vec![6.0, 8.0], 2)];
    assert_eq!(of(Median, &updates), [2.0, 8.0], "coordinates are apart, weights do not count");
    let ten = single(&[10.0, 1.0, 2.0, 9.0, 3.0, 4.0, 8.0, 5.0, 6.0, -1000.0]);
    assert_eq!(of(TrimmedMean { trim: 0.1 }, &ten), [(1 + 2 + 3 + 4 + 5 + 6 + 8 + 9) as f64 / 8.0]);
    assert_eq!(of(TrimmedMean { trim: 0.11 }, &ten), [(2 + 3 + 4 + 5 + 6 + 8) as f64 / 6.0]);
    assert_eq!(of(TrimmedMean { trim: 0.49 }, &ten), of(Median, &ten));
    assert_eq!(of(TrimmedMean { trim: 0.0 }, &ten), [-95.2]);
}

#[test]
fn as_many_are_cut_as_can_be_liars() {
    assert_eq!([3, 4, 5, 10, 30, 100].map(|count| cut(0.1, count)), [1, 1, 1, 1, 3, 10]);
    assert_eq!(cut(0.07, 100), 7);
    for count in 1..300 {
        for trim in [0.0, 0.05, 0.2, 0.3, 0.49, 0.5, 7.0, -1.0, f64::NAN] {
            let cut = cut(trim, count);
            assert!(
                2 * cut < count && (trim >= 0.5 || cut >= (trim * count as f64) as usize),
                "{trim} {count}"
            );
        }
    }
}

/// Squared distances on a line to the n - f - 2 = 2 nearest of 0, 1, 3, 4, 10: 1 + 9, 1 + 4, 1 + 4, 1 + 9, 36 + 49.
#[test]
fn krum_is_as_computed_by_hand() {
    let updates = [(vec![0.0], 1), (vec![1.0], 3), (vec![3.0], 1), (vec![4.0], 1), (vec![10.0], 1)];
    // 1 and 3 have the same score; which of them is kept is their contents' matter.
    let kept = of(KRUM, &updates);
    assert!(kept == [1.0] || kept == [3.0], "{kept:?}");
    assert_eq!(of(MULTI, &updates), [1.5]);
    let four = of(RobustRule::Krum { byzantine: 1, keep: 4 }, &updates)[0];
    assert!((four - f64::from(3 + 3 + 4) / 6.0).abs() < 1e-15, "{four}");
    let tiny = [0.0, 1e-30, 2.5e-30, 1.0, 2.0].map(|value| (vec![value], 7));
    assert_eq!(of(KRUM, &tiny)[0] as f32, 1e-30, "what is kept alone keeps all its digits");
}

#[test]
fn the_geometric_median_is_as_computed_by_hand() {
    // From the mean 3, at distances 3, 2 and 5: (0/3 + 1/2 + 8/5) / (1/3 + 1/2 + 1/5) = 2.1 / (31/30).
    let updates = single(&[0.0, 1.0, 8.0]);
    let rule = |iterations| RobustRule::GeometricMedian { iterations, smoothing: 1e-6 };
    assert_eq!(of(rule(0), &updates), [3.0]);
    assert!((of(rule(1), &updates)[0] - 63.0 / 31.0).abs() < 1e-12);
    assert!((of(rule(40), &updates)[0] - 1.0).abs() < 1e-6, "on a line it is the median");
    // The Fermat point of a triangle with a right angle and two sides of 1: all sides are seen at 120 degrees.
    let triangle = [(vec![0.0, 0.0], 1), (vec![1.0, 0.0], 1), (vec![0.0, 1.0], 1)];
    let fermat = (3.0 - 3f64.sqrt()) / 6.0;
    for coordinate in of(rule(60), &triangle) {
        assert!((coordinate - fermat).abs() < 1e-9, "{coordinate} is not {fermat}");
    }
    // More than half of the weight draws it onto one update.
    let heavy = [(vec![0.0, 0.0], 1), (vec![1.0, 0.0], 5), (vec![0.0, 1.0], 1)];
    let found = of(rule(60), &heavy);
    assert!((found[0] - 1.0).abs() < 1e-5 && found[1].abs() < 1e-5, "{found:?}");
}

#[test]
fn too_few_and_too_many_are_named() {
    let each = &mut |_: &[f64]| panic!("nothing is to be written");
    for (rule, least) in [
        (RobustRule::Median, 1),
        (RobustRule::TrimmedMean { trim: 0.2 }, 3),
        (RobustRule::Krum { byzantine: 2, keep: 1 }, 7),
        (RobustRule::Krum { byzantine: 1, keep: 9 }, 10),
        (RobustRule::Krum { byzantine: u32::MAX, keep: u32::MAX }, u32::MAX),
        (RFA, 1),
    ] {
        assert_eq!(rule.least(), least);
        let mut updates = gathered(&single(&vec![1.0; least.min(20) as usize - 1]));
        let error = rule.aggregate(&layout(1), &mut updates, each).unwrap_err();
        assert!(matches!(error, SpoolError::Accumulate(AccumulateError::Few { .. })), "{error}");
    }
    let mut updates = gathered(&single(&vec![1.0; krum::MOST as usize + 1]));
    let error = KRUM.aggregate(&layout(1), &mut updates, each).unwrap_err();
    assert!(matches!(error, SpoolError::Accumulate(AccumulateError::Many { .. })), "{error}");
}

#[test]
fn an_update_that_cannot_be_read_is_an_error() {
    for rule in [RobustRule::Median, KRUM, RFA] {
        let mut updates = gathered(&single(&[1.0; 5]));
        updates[3].adapter = Box::new(Cursor::new(vec![0; 3]));
        let error = rule.aggregate(&layout(1), &mut updates, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, SpoolError::Io(_)), "{error}");
    }
}

/// Chunks and blocks of several widths: coordinates are as if each had been aggregated alone, where a rule takes them
/// one by one, and chunks have the promised length.
#[test]
fn chunks_do_not_show() {
    let values = CHUNK_VALUES * 2 + 77;
    let updates: Vec<_> = (1..=5u8)
        .map(|seed| ((0..values).map(|at| (at as f32 * f32::from(seed) * 0.37).sin()).collect::<Vec<_>>(), 3))
        .collect();
    for rule in [RobustRule::Median, RobustRule::TrimmedMean { trim: 0.2 }, MULTI, RFA] {
        let (mut lengths, mut result) = (Vec::new(), Vec::new());
        let mut each = |chunk: &[f64]| {
            lengths.push(chunk.len());
            result.extend_from_slice(chunk);
            Ok(())
        };
        rule.aggregate(&layout(values), &mut gathered(&updates), &mut each).unwrap();
        assert_eq!(lengths, [CHUNK_VALUES, CHUNK_VALUES, 77]);
        if !matches!(rule, RobustRule::Median | RobustRule::TrimmedMean { .. }) {
            continue;
        }
        for at in (0..values).step_by(4099).chain([values - 1]) {
            let alone: Vec<_> = updates.iter().map(|(values, weight)| (vec![values[at]], *weight)).collect();
            assert_eq!(of(rule, &alone), [result[at]]);
        }
    }
    // Krum and the geometric median look at whole updates: of the same values, repeated, they make the same.
    let short: Vec<_> = (1..=5u8).map(|seed| vec![f32::from(seed).sin(), f32::from(seed).cos()]).collect();
    let repeated: Vec<_> = short.iter().map(|values| (values.repeat(CHUNK_VALUES), 3)).collect();
    let short: Vec<_> = short.into_iter().map(|values| (values, 3)).collect();
    for rule in [MULTI, RFA] {
        let (few, many) = (of(rule, &short), of(rule, &repeated));
        assert!(many.iter().zip(few.iter().cycle()).all(|(many, few)| (many - few).abs() < 1e-9));
    }
}

fn updates(
    count: impl Strategy<Value = usize>,
    values: usize,
) -> impl Strategy<Value = Vec<(Vec<f32>, u64)>> {
    let value =
        prop_oneof![4 => -1f32..1.0, 1 => Just(0.0), 1 => Just(-0.0), 1 => -MAX_MAGNITUDE..MAX_MAGNITUDE];
    let update = (prop::collection::vec(value, values), 1u64..5000);
    count.prop_flat_map(move |count| prop::collection::vec(update.clone(), count))
}

/// Honest updates near the origin, then liars that hold anything.
fn attacked(honest: usize, liars: usize, values: usize) -> impl Strategy<Value = Vec<(Vec<f32>, u64)>> {
    let near = prop::collection::vec(-1f32..1.0, values);
    let lie = prop::collection::vec(prop_oneof![-MAX_MAGNITUDE..=MAX_MAGNITUDE, Just(MAX_MAGNITUDE)], values);
    (prop::collection::vec(near, honest), prop::collection::vec(lie, liars))
        .prop_map(|(honest, lies)| honest.into_iter().chain(lies).map(|values| (values, 9)).collect())
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

proptest! {
    #[test]
    fn the_order_of_updates_does_not_change_a_byte(
        (updates, shuffled) in updates(5..14usize, 21).prop_flat_map(|u| (Just(u.clone()), Just(u).prop_shuffle())),
    ) {
        for rule in [RobustRule::Median, RobustRule::TrimmedMean { trim: 0.2 }, KRUM, MULTI, RFA] {
            let bits = |updates| of(rule, updates).into_iter().map(f64::to_bits).collect::<Vec<_>>();
            prop_assert_eq!(bits(&updates), bits(&shuffled), "{:?}", rule);
        }
    }

    /// Scores that are the same, contents that are not.
    #[test]
    fn ties_are_broken_by_content(values in prop::collection::vec(0u8..3, 5..9), seed in 0usize..8) {
        let updates: Vec<_> = values.iter().map(|value| (vec![f32::from(*value)], 1 + u64::from(*value))).collect();
        let mut turned = updates.clone();
        turned.rotate_left(seed % updates.len());
        turned.reverse();
        for rule in [KRUM, MULTI] {
            prop_assert_eq!(of(rule, &updates), of(rule, &turned));
        }
    }

    #[test]
    fn the_result_is_among_the_updates(updates in updates(5..14usize, 9)) {
        for rule in [RobustRule::Median, RobustRule::TrimmedMean { trim: 0.2 }, KRUM, MULTI, RFA] {
            for (at, value) in of(rule, &updates).into_iter().enumerate() {
                let column = updates.iter().map(|(values, _)| f64::from(values[at]));
                let (low, high) = column.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
                let rounding = 1e-12 * low.abs().max(high.abs());
                prop_assert!(low - rounding <= value && value <= high + rounding, "{:?}", rule);
            }
        }
    }

    #[test]
    fn equal_updates_give_themselves(values in prop::collection::vec(-MAX_MAGNITUDE..MAX_MAGNITUDE, 1..30), weights in prop::collection::vec(1u64..10_000, 5..9)) {
        let updates: Vec<_> = weights.into_iter().map(|weight| (values.clone(), weight)).collect();
        for rule in [RobustRule::Median, RobustRule::TrimmedMean { trim: 0.2 }, KRUM, MULTI, RFA] {
            let result: Vec<_> = of(rule, &updates).into_iter().map(|value| value as f32).collect();
            prop_assert_eq!(&result, &values, "{:?}", rule);
        }
    }

    /// Fewer than half the updates are lies: no coordinate leaves the range of the honest ones.
    #[test]
    fn liars_do_not_move_medians_and_trimmed_means_out_of_the_honest_range(
        updates in (0usize..5).prop_flat_map(|liars| attacked(liars + 1 + liars % 3, liars, 7)),
    ) {
        let honest: Vec<_> = updates.iter().filter(|(values, _)| values.iter().all(|value| value.abs() < 1.0)).collect();
        let liars = updates.len() - honest.len();
        let trim = liars as f64 / updates.len() as f64;
        for rule in [RobustRule::Median, RobustRule::TrimmedMean { trim }] {
            if updates.len() < rule.least() as usize {
                continue;
            }
            for (at, value) in of(rule, &updates).into_iter().enumerate() {
                let column = honest.iter().map(|(values, _)| f64::from(values[at]));
                let (low, high) = column.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
                prop_assert!(low - 1e-15 <= value && value <= high + 1e-15, "{:?}: {} not in {}..{}", rule, value, low, high);
            }
        }
    }

    /// Lies farther away than honest updates are from each other are never kept.
    #[test]
    fn krum_keeps_honest_updates((updates, liars) in (1usize..5).prop_flat_map(|liars| (attacked(liars + 3, liars, 6), Just(liars)))) {
        let far = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() > 1e4;
        let (honest, lies) = updates.split_at(liars + 3);
        prop_assume!(lies.iter().all(|(values, _)| far(values)));
        let byzantine = liars as u32;
        let kept: Vec<f32> =
            of(RobustRule::Krum { byzantine, keep: 1 }, &updates).into_iter().map(|value| value as f32).collect();
        prop_assert!(honest.iter().any(|(values, _)| *values == kept), "{:?}", kept);
        // Even all liars together, in one place.
        let together: Vec<_> = honest.iter().cloned().chain(vec![lies[0].clone(); liars]).collect();
        let mean = of(RobustRule::Krum { byzantine, keep: 3 }, &together);
        prop_assert!(mean.iter().all(|value| value.abs() <= 1.0), "{:?}", mean);
    }

    /// With a share p < 1/2 of lies, the geometric median is at most 2 (1 - p) / (1 - 2 p) times as far from a point as
    /// the farthest honest update is (Pillutla et al., section 4; Lopuhaa and Rousseeuw 1991).
    #[test]
    fn liars_move_the_geometric_median_by_a_bounded_amount(
        (updates, liars) in (0usize..4).prop_flat_map(|liars| (attacked(liars * 2 + 2, liars, 6), Just(liars))),
    ) {
        let honest = liars * 2 + 2;
        let share = liars as f64 / updates.len() as f64;
        let radius = updates[..honest]
            .iter()
            .map(|(values, _)| norm(&values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>()))
            .fold(0.0, f64::max);
        let found = of(RobustRule::GeometricMedian { iterations: 60, smoothing: 1e-6 }, &updates);
        let bound = 2.0 * (1.0 - share) / (1.0 - 2.0 * share) * radius;
        prop_assert!(norm(&found) <= bound + 1e-6, "{} {}", norm(&found), bound);
    }
}
