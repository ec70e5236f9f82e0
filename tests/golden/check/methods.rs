//! Every method's loss, logits and gradients are PyTorch's.

use std::collections::{BTreeSet, HashMap};

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, build};
use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::Model;
use fedpeft_peft::{Method, Pooling};
use ndarray::ArrayD;

use crate::{
    case::{Case, Trained},
    compare::assert_close,
    file,
};

fn options(case: &Case, export: &str) -> BuildOptions {
    BuildOptions {
        model: file::path(&format!("exports/{export}.onnx")),
        output: "tokens".into(),
        input_shape: case.inputs["pixel_values"].shape()[1..].to_vec(),
        classes: case.logits.shape()[1] as u32,
        method: case.spec.method.parse::<Method>().unwrap(),
        pooling: if case.spec.pooling == "cls" { Pooling::Cls } else { Pooling::Mean },
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
    }
}

/// How an adapter tensor lies in memory, compared with PyTorch's.
#[derive(Clone, Copy)]
enum Order {
    Same,
    Transposed,
}

impl Order {
    fn of(self, values: &ArrayD<f64>, shape: &[usize]) -> ArrayD<f64> {
        let values = match self {
            Self::Same => values.clone(),
            Self::Transposed => values.t().as_standard_layout().into_owned(),
        };
        values.into_shape_with_order(shape).unwrap()
    }
}

/// The tensor of the case that `name` with the initial value `initial` is: by name, or as a tensor of the
/// backbone by its values, which exporters rename and transpose.
fn find<'a>(case: &'a Case, name: &str, initial: &ArrayD<f64>) -> (&'a str, &'a Trained, Order) {
    if let Some((name, trained)) = case.trained.get_key_value(name) {
        return (name, trained, Order::Same);
    }
    let same = |other: &ArrayD<f64>, order: Order| {
        other.len() == initial.len() && order.of(other, initial.shape()) == *initial
    };
    let mut found = [Order::Same, Order::Transposed]
        .into_iter()
        .flat_map(|order| case.trained.iter().map(move |(name, trained)| (name.as_str(), trained, order)));
    found
        .find(|(_, trained, order)| same(&trained.initial, *order))
        .unwrap_or_else(|| panic!("{name} {:?} is no tensor of the case", initial.shape()))
}

fn check(name: &str, export: &str) {
    let case = Case::load(name);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("artifacts");
    let manifest = build(&options(&case, export), &path).unwrap();
    let folder = ArtifactFolder::open(&path).unwrap();
    let checkpoint = folder.initial_adapter().unwrap();

    let mut inputs: HashMap<String, Value> = case.inputs.clone().into_iter().collect();
    inputs.insert("labels".into(), case.labels.clone());
    let mut pairs = Vec::new();
    for (spec, range) in manifest.adapter.ranges() {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| *dim as usize).collect();
        let initial = checkpoint[range].iter().map(|value| f64::from(*value)).collect();
        let initial = ArrayD::from_shape_vec(shape.clone(), initial).unwrap();
        let (theirs, trained, order) = find(&case, &spec.name, &initial);
        inputs.insert(spec.name.clone(), Value::Float(order.of(&trained.initial, &shape)));
        pairs.push((spec.name.as_str(), theirs, order.of(&trained.gradient, &shape)));
    }
    let used: BTreeSet<&str> = pairs.iter().map(|(_, theirs, _)| *theirs).collect();
    let missing: Vec<_> = case.trained.keys().filter(|name| !used.contains(name.as_str())).collect();
    assert!(missing.is_empty() && used.len() == pairs.len(), "{name}: not trained: {missing:?}");

    let training = Model::load(folder.file(&manifest.files.training)).unwrap();
    let outputs = Interpreter::new(&training).unwrap().run(&inputs).unwrap();
    assert_close(outputs["loss"].as_float().unwrap(), &case.loss, &format!("{name} on {export}: loss"));
    for (ours, theirs, gradient) in &pairs {
        let got = outputs[&format!("{ours}.grad")].as_float().unwrap();
        assert_close(got, gradient, &format!("{name} on {export}: gradient of {theirs}"));
    }
    let eval = Model::load(folder.file(&manifest.files.eval)).unwrap();
    let outputs = Interpreter::new(&eval).unwrap().run(&inputs).unwrap();
    assert_close(outputs["loss"].as_float().unwrap(), &case.loss, &format!("{name} on {export}: loss"));
    assert_close(outputs["logits"].as_float().unwrap(), &case.logits, &format!("{name} on {export}: logits"));
}

#[test]
fn vit() {
    for export in ["vit-sdpa", "vit-eager", "vit-opset14", "vit-dynamo"] {
        for method in ["head", "bias", "full"] {
            check(&format!("vit-{method}"), export);
        }
    }
}
