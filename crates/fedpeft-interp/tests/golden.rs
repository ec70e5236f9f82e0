//! Replays what ONNX Runtime computed for small cases of every operator; see `golden/make.py`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::{collections::BTreeMap, fmt::Debug, str::FromStr};

use fedpeft_interp::{Value, eval_node, supports};
use fedpeft_onnx::{Attribute, DType, Node, Tensor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    op: String,
    attributes: BTreeMap<String, RawAttribute>,
    inputs: Vec<Option<RawTensor>>,
    outputs: Vec<RawTensor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawAttribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Floats(Vec<f32>),
    Str(String),
    Tensor(RawTensor),
}

#[derive(Deserialize)]
struct RawTensor {
    r#type: String,
    shape: Vec<usize>,
    /// Elements in row-major order, parted by spaces.
    data: String,
}

impl RawTensor {
    fn numbers<T: FromStr<Err: Debug>>(&self) -> Vec<T> {
        self.data.split_whitespace().map(|number| number.parse().unwrap()).collect()
    }

    /// The tensor, of the widest type of its kind.
    fn tensor(&self) -> Tensor {
        match self.r#type.as_str() {
            "float32" => Tensor::f32(self.shape.clone(), &self.numbers()),
            "bool" => {
                let values: Vec<bool> = self.numbers::<i64>().into_iter().map(|value| value != 0).collect();
                Tensor::bool(self.shape.clone(), &values)
            }
            "int64" | "int32" => Tensor::i64(self.shape.clone(), &self.numbers()),
            other => panic!("{other}"),
        }
    }

    fn value(&self) -> Value {
        Value::from_tensor(&self.tensor()).unwrap()
    }
}

impl Case {
    fn node(&self, index: usize) -> Node {
        let outputs: Vec<String> = (0..self.outputs.len()).map(|i| format!("y{i}")).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let mut node = Node::new(&self.op, &[], &outputs).named(format!("case {index}"));
        for (name, attribute) in &self.attributes {
            let attribute = match attribute {
                RawAttribute::Int(value) => Attribute::Int(*value),
                RawAttribute::Ints(values) => Attribute::Ints(values.clone()),
                RawAttribute::Float(value) => Attribute::Float(*value),
                RawAttribute::Floats(values) => Attribute::Floats(values.clone()),
                RawAttribute::Str(text) => text.as_str().into(),
                RawAttribute::Tensor(tensor) => Attribute::Tensor(tensor.tensor()),
            };
            node.attributes.insert(name.clone(), attribute);
        }
        node
    }
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("golden/operators.json")).unwrap()
}

/// Whether `ours` is `theirs` but for the rounding of single precision.
fn close(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Float(ours), Value::Float(theirs)) => {
            let near = |a: f64, b: f64| {
                a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-5 * b.abs().max(1.0)
            };
            ours.shape() == theirs.shape() && ours.iter().zip(theirs).all(|(a, b)| near(*a, *b))
        }
        _ => ours == theirs,
    }
}

#[test]
fn every_case_agrees_with_onnx_runtime() {
    let mut failures = Vec::new();
    for (index, case) in cases().iter().enumerate() {
        let node = case.node(index);
        let inputs: Vec<Option<Value>> =
            case.inputs.iter().map(|input| input.as_ref().map(RawTensor::value)).collect();
        let inputs: Vec<Option<&Value>> = inputs.iter().map(Option::as_ref).collect();
        match eval_node(&node, &inputs) {
            Ok(ours) => {
                for (i, (ours, theirs)) in ours.iter().zip(&case.outputs).enumerate() {
                    let theirs = theirs.value();
                    if !close(ours, &theirs) {
                        failures.push(format!(
                            "{} {:?} output {i}: ours {ours:?}, theirs {theirs:?}",
                            node.label(),
                            node.attributes
                        ));
                    }
                    let dtype = match ours {
                        Value::Float(_) => DType::F32,
                        Value::Int(_) => DType::I64,
                        Value::Bool(_) => DType::Bool,
                    };
                    assert_eq!(ours.to_tensor(dtype).unwrap().shape, ours.shape());
                }
            }
            Err(error) => failures.push(format!("{error}; {:?}", node.attributes)),
        }
    }
    assert!(failures.is_empty(), "{} cases differ:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_operator_has_a_case() {
    let table = include_str!("../src/ops/mod.rs");
    let names = table.lines().filter_map(|line| line.trim().strip_prefix('"')?.split_once("\" =>"));
    let names: Vec<&str> = names.map(|(name, _)| name).collect();
    assert!(names.len() > 70);
    let cases = cases();
    for name in names {
        assert!(supports(name) && cases.iter().any(|case| case.op == name), "{name} has no golden case");
    }
}
