//! Means of low-rank updates against numpy (`tests/golden/lora.py`).
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::io::Cursor;

use fedpeft_codec::{Layout, TensorSpec, encode};
use fedpeft_strategy::{
    Weight,
    lora::{Pair, ProductMean},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    rank: usize,
    inputs: usize,
    outputs: usize,
    weights: Vec<u64>,
    a: Vec<Vec<f32>>,
    b: Vec<Vec<f32>>,
    product: Vec<f64>,
    singular: Vec<f64>,
    lost: f64,
}

#[test]
fn mean_updates_are_split_as_numpy_does() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../../tests/golden/lora.json")).unwrap();
    for Case { rank, inputs, outputs, weights, a, b, product, singular, lost } in cases {
        let spec = |name: &str, shape: [usize; 2]| TensorSpec {
            name: name.into(),
            shape: shape.map(|dim| dim as u64).to_vec(),
        };
        let tensors = vec![spec("q.lora_A.weight", [rank, inputs]), spec("q.lora_B.weight", [outputs, rank])];
        let layout = Layout::new(tensors).unwrap();
        let pairs = Pair::all(&layout).unwrap();
        let mut sum = ProductMean::new(layout, pairs).unwrap();
        for ((a, b), weight) in a.iter().zip(&b).zip(weights) {
            let adapter = encode(&[&a[..], &b[..]].concat());
            sum.add(&mut Cursor::new(adapter), Weight::new(weight).unwrap()).unwrap();
        }
        let mut mean = Vec::new();
        let mut each = |chunk: &[f64]| {
            mean.extend_from_slice(chunk);
            Ok(())
        };
        let got_lost = sum.each_mean(&mut each).unwrap();
        assert!((got_lost - lost).abs() < 1e-9, "{got_lost} is not {lost}");

        let (a, b) = mean.split_at(rank * inputs);
        let size = singular[0];
        for (at, wanted) in singular.iter().enumerate() {
            let value = b.iter().skip(at).step_by(rank).map(|value| value * value).sum::<f64>().sqrt();
            assert!((value - wanted).abs() < 1e-9 * size, "{value} is not {wanted}");
        }
        // The signs of singular vectors are anybody's choice, those of products are not.
        for (entry, wanted) in product.iter().enumerate() {
            let (row, column) = (entry / inputs, entry % inputs);
            let got: f64 = (0..rank).map(|at| b[row * rank + at] * a[at * inputs + column]).sum();
            assert!((got - wanted).abs() < 1e-6 * size, "{got} is not {wanted}");
        }
    }
}
