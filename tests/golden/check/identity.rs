//! Methods that begin at zero begin at the frozen model.

use std::collections::{BTreeMap, HashMap};

use fedpeft_autodiff::functions;
use fedpeft_interp::Value;
use fedpeft_onnx::Model;
use fedpeft_passes::Prepared;
use ndarray::{ArrayD, IxDyn};

use crate::{build, case::Case, runtime::Engine};

/// What `backbone` computes of `batch`.
fn forward(backbone: Prepared, batch: &HashMap<String, Value>, engine: Engine) -> ArrayD<f64> {
    let output = backbone.graph.outputs[0].name.clone();
    let mut model = Model::new(backbone.graph);
    functions::attach(&mut model);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backbone.onnx");
    model.save(&path).unwrap();
    let mut outputs: BTreeMap<_, _> = engine.run(&path, batch);
    outputs.remove(&output).unwrap()
}

/// Largest difference relative to the largest value.
fn difference(got: &ArrayD<f64>, wanted: &ArrayD<f64>) -> f64 {
    let largest =
        |values: &ArrayD<f64>| values.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    largest(&(got - wanted)) / largest(wanted)
}

fn check(name: &str, export: &str, dropout: f64) {
    let mut case = Case::load(name);
    case.spec.dropout = dropout;
    let mut batch: HashMap<String, Value> = case.inputs.clone().into_iter().collect();
    batch.insert(fedpeft_peft::DROPOUT_SEED.into(), Value::Int(ArrayD::from_elem(IxDyn(&[]), 5)));
    let frozen = build::backbone(&case.inputs, export);
    let mut tuned = frozen.clone();
    fedpeft_peft::apply(&build::method(&case.spec), &mut tuned, 1).unwrap();
    for engine in [Engine::Interpreter, Engine::OnnxRuntime] {
        let wanted = forward(frozen.clone(), &batch, engine);
        let got = forward(tuned.clone(), &batch, engine);
        let what = format!("{name} on {export} by {engine:?}");
        let error = difference(&got, &wanted);
        assert!(error <= 1e-6, "{what}: differs by {error} relative");
        // What is added is zero and factors are one, which is exact. DoRA divides a norm by a rounded one, and
        // methods that choose among the backbone's tensors add nothing.
        let chooses = ["head", "bias", "layernorm", "full"].contains(&case.spec.method.as_str());
        let exact = matches!(engine, Engine::Interpreter) && case.spec.method != "dora";
        assert!(error == 0.0 || !(exact || chooses), "{what}: differs by {error} relative");
    }
}

macro_rules! cases {
    ($($test:ident: $cases:expr,)*) => {$(
        #[test]
        fn $test() {
            let (name, export): (&str, &str) = $cases;
            check(name, export, if stringify!($test).ends_with("dropout") { 0.5 } else { 0.0 });
        }
    )*};
}

cases! {
    vit_chosen: ("vit-bias", "vit-sdpa"),
    vit_lora: ("vit-lora", "vit-sdpa"),
    vit_lora_dropout: ("vit-lora", "vit-sdpa"),
    vit_dora: ("vit-dora", "vit-sdpa"),
    vit_dora_packed: ("vit-dora-packed", "vit-sdpa"),
    vit_adapter: ("vit-adapter-houlsby", "vit-sdpa"),
    vit_ia3: ("vit-ia3", "vit-sdpa"),
    bert_chosen: ("bert-full", "bert-sdpa"),
    bert_lora: ("bert-lora-all", "bert-sdpa"),
    bert_lora_dropout: ("bert-lora-all", "bert-sdpa"),
    bert_dora: ("bert-dora", "bert-sdpa"),
    bert_adapter: ("bert-adapter-pfeiffer", "bert-sdpa"),
    bert_ia3: ("bert-ia3", "bert-sdpa"),
    gpt_chosen: ("gpt-layernorm", "gpt-sdpa"),
    gpt_lora: ("gpt-lora", "gpt-sdpa"),
    gpt_lora_dropout: ("gpt-lora-packed", "gpt-sdpa"),
    gpt_dora: ("gpt-dora", "gpt-sdpa"),
    gpt_dora_packed: ("gpt-dora-packed", "gpt-sdpa"),
    gpt_adapter: ("gpt-adapter-shared", "gpt-sdpa"),
    gpt_ia3: ("gpt-ia3", "gpt-sdpa"),
}
