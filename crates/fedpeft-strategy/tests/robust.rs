//! Robust rules against numpy (`tests/golden/robust.py`).
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::io::Cursor;

use fedpeft_codec::{Layout, TensorSpec, encode};
use fedpeft_strategy::{Gathered, RobustRule, Weight};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    updates: Vec<Vec<f32>>,
    weights: Vec<u64>,
    rules: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    #[serde(flatten)]
    rule: Rule,
    mean: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(tag = "rule", rename_all = "lowercase")]
enum Rule {
    Median,
    Trimmed { trim: f64 },
    Krum { byzantine: u32, keep: u32 },
    Geometric { iterations: u32, smoothing: f64 },
}

impl Rule {
    fn rule(&self) -> RobustRule {
        match *self {
            Self::Median => RobustRule::Median,
            Self::Trimmed { trim } => RobustRule::TrimmedMean { trim },
            Self::Krum { byzantine, keep } => RobustRule::Krum { byzantine, keep },
            Self::Geometric { iterations, smoothing } => {
                RobustRule::GeometricMedian { iterations, smoothing }
            }
        }
    }
}

#[test]
fn robust_means_are_those_of_numpy() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../../tests/golden/robust.json")).unwrap();
    let mut checked = 0;
    for Case { updates, weights, rules } in cases {
        let values = updates[0].len();
        let layout =
            Layout::new(vec![TensorSpec { name: "bias".into(), shape: vec![values as u64] }]).unwrap();
        for Expected { rule, mean } in rules {
            let rule = rule.rule();
            let mut gathered: Vec<_> = updates
                .iter()
                .zip(&weights)
                .map(|(values, weight)| Gathered {
                    adapter: Box::new(Cursor::new(encode(values))),
                    weight: Weight::new(*weight).unwrap(),
                })
                .collect();
            let mut got = Vec::new();
            let mut each = |chunk: &[f64]| {
                got.extend_from_slice(chunk);
                Ok(())
            };
            rule.aggregate(&layout, &mut gathered, &mut each).unwrap();
            assert_eq!(got.len(), mean.len());
            for (got, wanted) in got.iter().zip(&mean) {
                assert!(
                    (got - wanted).abs() <= 1e-9 * wanted.abs().max(1.0),
                    "{rule:?}: {got} is not {wanted}"
                );
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 4 * 13);
}
