//! The sum of clipped gradients is that of a loop over the examples, each a batch of its own.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, build};
use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::Model;
use ndarray::{ArrayD, Axis, Slice, arr0};

use crate::{build as cases, case::Case, draw, runtime::Engine};

type Tensors = BTreeMap<String, ArrayD<f64>>;

/// Example `n` of every batched input as a batch of its own.
fn alone(inputs: &HashMap<String, Value>, batched: &[&str], n: usize) -> HashMap<String, Value> {
    let slice = Slice::from(n..n + 1);
    let mut inputs = inputs.clone();
    for name in batched {
        let value = inputs.get_mut(*name).unwrap();
        *value = match value {
            Value::Float(values) => Value::Float(values.slice_axis(Axis(0), slice).to_owned()),
            Value::Int(values) => Value::Int(values.slice_axis(Axis(0), slice).to_owned()),
            Value::Bool(values) => Value::Bool(values.slice_axis(Axis(0), slice).to_owned()),
        };
    }
    inputs
}

fn norm<'a>(tensors: impl IntoIterator<Item = &'a ArrayD<f64>>) -> f64 {
    tensors.into_iter().flatten().map(|value| value * value).sum::<f64>().sqrt()
}

/// What a class weighs, which is lost where the mean of one example is divided by it.
fn weight(case: &Case, n: usize) -> f64 {
    let weights = &case.spec.class_weights;
    match &case.labels {
        Value::Int(labels) if !weights.is_empty() => f64::from(weights[labels[[n]] as usize]),
        _ => 1.0,
    }
}

pub fn check(name: &str, export: &str, engines: &[Engine]) {
    let case = Case::load(name);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("artifacts");
    let options = BuildOptions { dp_sgd: true, ..cases::options(&case, export) };
    build(&options, &path).unwrap_or_else(|error| panic!("{name} on {export}: {error}"));
    let folder = ArtifactFolder::open(&path).unwrap();
    let manifest = folder.manifest();
    let mut inputs: HashMap<String, Value> = case.inputs.clone().into_iter().collect();
    inputs.insert("labels".into(), case.labels.clone());
    let batched: Vec<&str> =
        manifest.inputs.iter().map(|input| input.name.as_str()).chain(["labels"]).collect();
    let count = case.labels.shape()[0];
    assert!(count > 1);
    let initial = draw::perturbed(&folder.initial_adapter().unwrap());
    for (spec, range) in manifest.adapter.ranges() {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| *dim as usize).collect();
        let values = initial[range].iter().map(|value| f64::from(*value)).collect();
        inputs.insert(spec.name.clone(), Value::Float(ArrayD::from_shape_vec(shape, values).unwrap()));
    }
    let gradient = |outputs: &Tensors, tensor: &str| outputs[&format!("{tensor}.grad")].clone();
    let names: Vec<&str> = manifest.adapter.tensors().iter().map(|spec| spec.name.as_str()).collect();
    let each: Vec<Tensors> = (0..count)
        .map(|n| {
            let training = folder.file(&manifest.files.training);
            let outputs = Engine::Interpreter.run(&training, &alone(&inputs, &batched, n));
            let weight = weight(&case, n);
            let own = |name: &&str| ((*name).to_owned(), gradient(&outputs, name) * weight);
            names.iter().map(own).chain([("loss".to_owned(), &outputs["loss"] * weight)]).collect()
        })
        .collect();
    let lengths: Vec<f64> = each.iter().map(|one| norm(names.iter().map(|name| &one[*name]))).collect();
    let sorted = {
        let mut sorted = lengths.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    };
    // Some are clipped and some are not; and on the export that all engines see, none are, or all.
    let limits = [(sorted[0] + sorted[1]) / 2.0, sorted[count - 1] * 10.0, sorted[0] / 10.0];
    for limit in limits.into_iter().take(if engines.len() > 1 { 3 } else { 1 }) {
        inputs.insert("clip_norm".into(), Value::Float(arr0(limit).into_dyn()));
        let graph = folder.file(manifest.files.dp_training.as_ref().unwrap());
        let share = |n: usize| (limit / lengths[n]).min(1.0);
        for engine in engines {
            let outputs = engine.run(&graph, &inputs);
            let mean = each.iter().map(|one| one["loss"][[]]).sum::<f64>() / count as f64;
            let loss = outputs["loss"][[]];
            assert!((loss - mean).abs() < 1e-5 * mean.abs(), "{name} on {export}: loss {loss} is not {mean}");
            let (mut differences, mut wanted) = (Vec::new(), Vec::new());
            for tensor in &names {
                let sum = each.iter().enumerate().map(|(n, one)| &one[*tensor] * share(n));
                let sum = sum.reduce(|a, b| a + b).unwrap();
                let found = gradient(&outputs, tensor);
                assert_eq!(found.shape(), sum.shape(), "{tensor}");
                differences.push(found - &sum);
                wanted.push(sum);
            }
            let error = norm(&differences) / norm(&wanted);
            assert!(error < 1e-5, "{name} on {export} by {engine:?}: sums at {limit} differ by {error}");
        }
        let clipped = lengths.iter().filter(|length| **length > limit).count() as i64;
        assert_eq!(count_of(&graph, &inputs), clipped, "{name} on {export} at {limit}");
    }
}

fn count_of(graph: &Path, inputs: &HashMap<String, Value>) -> i64 {
    let outputs = Interpreter::new(&Model::load(graph).unwrap()).unwrap().run(inputs).unwrap();
    let Value::Int(clipped) = &outputs["clipped"] else { panic!("clipped is no integer") };
    clipped[[]]
}
