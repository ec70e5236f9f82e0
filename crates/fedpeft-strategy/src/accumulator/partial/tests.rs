use std::io::Cursor;

use fedpeft_codec::{TensorSpec, encode};
use proptest::prelude::*;

use super::*;
use crate::accumulator::{MAX_MAGNITUDE, Weight};

type Updates = Vec<(Vec<f32>, u64)>;

fn layout(values: usize) -> Layout {
    Layout::new(vec![TensorSpec { name: "w".into(), shape: vec![values as u64] }]).unwrap()
}

fn sum(updates: &[(Vec<f32>, u64)]) -> Accumulator {
    let mut sum = Accumulator::new(layout(updates[0].0.len())).unwrap();
    for (values, weight) in updates {
        sum.add(&encode(values), Weight::new(*weight).unwrap()).unwrap();
    }
    sum
}

fn written(sum: &Accumulator) -> Vec<u8> {
    let mut bytes = Vec::new();
    sum.write_partial(&mut bytes).unwrap();
    assert!(bytes.len() as u64 <= max_partial_bytes(&sum.layout));
    bytes
}

fn merged(into: &mut Accumulator, bytes: &[u8], claim: Claim) -> Result<(), String> {
    into.merge_partial(&mut Cursor::new(bytes), claim).map_err(|error| error.to_string())
}

/// The sum of a tree: a node is `(updates of its own, children)`, and children come as bytes.
#[derive(Debug, Clone)]
struct Node(Vec<usize>, Vec<Node>);

fn gather(node: &Node, updates: &Updates) -> Accumulator {
    let mut sum = Accumulator::new(layout(updates[0].0.len())).unwrap();
    for at in &node.0 {
        let (values, weight) = &updates[*at];
        sum.add(&encode(values), Weight::new(*weight).unwrap()).unwrap();
    }
    for child in &node.1 {
        let below = gather(child, updates);
        if below.updates() > 0 {
            merged(&mut sum, &written(&below), below.claim().unwrap()).unwrap();
        }
    }
    sum
}

fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1.0f32..1.0,
        2 => -MAX_MAGNITUDE..=MAX_MAGNITUDE,
        1 => Just(0.0f32),
        1 => any::<f32>().prop_filter("within bounds", |v| v.abs() <= MAX_MAGNITUDE),
    ]
}

fn updates() -> impl Strategy<Value = Updates> {
    (1usize..300).prop_flat_map(|values| {
        let weight = prop_oneof![4 => 1u64..5000, 1 => Just(1), 1 => Just(MAX_WEIGHT)];
        proptest::collection::vec((proptest::collection::vec(value(), values), weight), 1..10)
    })
}

/// A tree of up to four levels over the updates of these indices, each in one place.
fn tree(indices: Vec<usize>, depth: u32) -> BoxedStrategy<Node> {
    if depth == 0 || indices.is_empty() {
        return Just(Node(indices, Vec::new())).boxed();
    }
    let places = proptest::collection::vec(0usize..4, indices.len());
    places
        .prop_flat_map(move |places| {
            let at =
                |wanted| indices.iter().zip(&places).filter(move |(_, p)| **p == wanted).map(|(i, _)| *i);
            let children: Vec<_> = (1..4).map(|place| tree(at(place).collect(), depth - 1)).collect();
            (Just(at(0).collect::<Vec<_>>()), children)
        })
        .prop_map(|(own, children)| Node(own, children))
        .boxed()
}

proptest! {
    #[test]
    fn any_tree_gives_the_bytes_of_the_flat_sum(
        (updates, tree) in updates().prop_flat_map(|u| { let all = (0..u.len()).collect(); (Just(u), tree(all, 3)) })
    ) {
        let (flat, tree) = (sum(&updates), gather(&tree, &updates));
        prop_assert_eq!(flat.mean().unwrap(), tree.mean().unwrap());
        prop_assert_eq!(flat.claim().unwrap(), tree.claim().unwrap());
        // Nor can anybody above see how it came about.
        prop_assert_eq!(written(&flat), written(&tree));
    }

    #[test]
    fn blocks_of_any_integers_come_back(values in proptest::collection::vec(-(1i128 << 110)..1 << 110, 1..300), shift in 0u32..100) {
        let values: Vec<i128> = values.into_iter().map(|value| value >> shift << shift).collect();
        for block in values.chunks(BLOCK) {
            let mut packed = Vec::new();
            pack(block, &mut packed);
            let mut back = vec![0; block.len()];
            unpack(&packed[2..], u32::from(packed[0]), u32::from(packed[1]).max(1), &mut back);
            prop_assert_eq!(&back, block);
            for value in block {
                let (high, low) = split(*value);
                prop_assert_eq!((i128::from(high) << LOW_BITS) + i128::from(low), *value);
                prop_assert!(low.unsigned_abs() <= 1 << 46);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        width in 0u8..130,
        claimed in 1u64..100_000,
        weight: u64,
    ) {
        let before = sum(&[(vec![0.25; 8], 3)]);
        for bytes in [bytes.clone(), [&[0, width], &bytes[..]].concat(), [&[0, width], &bytes[..bytes.len().min(usize::from(width))]].concat()] {
            let mut after = before.clone();
            let added = Claim::new(claimed, weight).map_err(|error| error.to_string())
                .or_else(|_| Claim::new(claimed % 1000 + 1, 1000 + weight % 1000).map_err(|error| error.to_string()))
                .and_then(|claim| merged(&mut after, &bytes, claim));
            match added {
                Ok(()) => prop_assert!(after.mean().is_ok()),
                Err(_) => prop_assert_eq!(&after, &before),
            }
        }
    }

    #[test]
    fn no_byte_can_be_cut_off_or_added(updates in updates(), cut in 1usize..40) {
        let sum = sum(&updates);
        let (bytes, claim) = (written(&sum), sum.claim().unwrap());
        let mut other = Accumulator::new(sum.layout.clone()).unwrap();
        let short = &bytes[..bytes.len() - cut.min(bytes.len())];
        prop_assert!(merged(&mut other, short, claim).unwrap_err().contains("ends before its last value"));
        let long = [&bytes[..], &vec![0; cut]].concat();
        prop_assert!(merged(&mut other, &long, claim).unwrap_err().contains("goes on after its last value"));
        prop_assert_eq!(other.updates(), 0);
    }
}

#[test]
fn a_claim_is_what_updates_can_be() {
    assert_eq!(
        Claim::new(3, 3 * MAX_WEIGHT).map(|claim| (claim.updates(), claim.weight())),
        Ok((3, 3 * MAX_WEIGHT))
    );
    for (updates, weight) in [
        (0, 0),
        (0, 5),
        (2, 1),
        (1, MAX_WEIGHT + 1),
        (MAX_UPDATES + 1, MAX_UPDATES + 1),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(Claim::new(updates, weight), Err(AccumulateError::Claim { updates, weight }));
    }
}

#[test]
fn values_beyond_what_the_weight_allows_are_named() {
    let honest = sum(&[(vec![0.0, MAX_MAGNITUDE, 0.0], 10)]);
    let mut sum = Accumulator::new(layout(3)).unwrap();
    let error = merged(&mut sum, &written(&honest), Claim::new(1, 9).unwrap()).unwrap_err();
    assert!(error.contains("value 1 of tensor w") && error.contains("weight of 9"), "{error}");
    merged(&mut sum, &written(&honest), Claim::new(1, 10).unwrap()).unwrap();
    assert_eq!(sum.mean(), honest.mean());
}

#[test]
fn the_extremes_of_all_bounds_together_do_not_overflow() {
    // As many and as heavy updates as a sum holds, in the largest parts that can be claimed.
    let extreme = vec![MAX_MAGNITUDE, -MAX_MAGNITUDE, f32::from_bits(MAX_MAGNITUDE.to_bits() - 1)];
    let mut part = Accumulator::new(layout(3)).unwrap();
    for _ in 0..255 {
        part.add(&encode(&extreme), Weight::new(MAX_WEIGHT).unwrap()).unwrap();
    }
    let (bytes, claim) = (written(&part), part.claim().unwrap());
    let mut sum = Accumulator::new(layout(3)).unwrap();
    for _ in 0..257 {
        merged(&mut sum, &bytes, claim).unwrap();
    }
    assert_eq!((sum.updates(), sum.mean().unwrap()), (MAX_UPDATES, encode(&extreme)));
    let full = written(&sum);
    let mut again = Accumulator::new(layout(3)).unwrap();
    merged(&mut again, &full, sum.claim().unwrap()).unwrap();
    assert_eq!(again.mean(), sum.mean());
    let error = merged(&mut again, &bytes, claim).unwrap_err();
    assert!(error.contains("at most 65535"), "{error}");
}

#[test]
fn the_mean_of_a_partial_sum_is_as_far_away_as_it_is() {
    let sum = sum(&[(vec![1.0, 5.0, 2.0], 3), (vec![5.0, 1.0, 2.0], 1)]);
    let base = encode(&[0.0, 0.0, 0.0]);
    let (bytes, claim) = (written(&sum), sum.claim().unwrap());
    let distance =
        partial_distance(&mut Cursor::new(&bytes), &sum.layout, claim, &mut Cursor::new(&base)).unwrap();
    // Of (2, 4, 2).
    assert_eq!(distance, 24f64.sqrt());
}

#[test]
fn sums_of_similar_values_are_small() {
    let adapter = |seed: f32| (0..100_000).map(|at| (at as f32 * seed).sin() * 0.05).collect::<Vec<_>>();
    let sum = sum(&[(adapter(0.1), 200), (adapter(0.7), 150), (adapter(1.3), 170)]);
    let bits = written(&sum).len() * 8 / 100_000;
    assert!((32..56).contains(&bits), "{bits} bits a value");
}
