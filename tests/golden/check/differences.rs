//! Gradients are the slopes of the loss: central differences in f64.

use std::collections::HashMap;

use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{DType, Model};
use fedpeft_peft::DROPOUT_SEED;
use ndarray::{ArrayD, IxDyn};

use crate::{
    build,
    case::Case,
    draw,
    export::{residual, tensors},
};

/// Half the distance of the two points: its square and the rounding of a loss over it are both below what is
/// asserted.
const STEP: f64 = 1e-5;
const RELATIVE: f64 = 1e-5;
/// Rounding of the loss over the step.
const NOTHING: f64 = 1e-9;
/// Entries of every tensor.
const ENTRIES: usize = 3;

fn loss(model: &Model, inputs: &HashMap<String, Value>) -> f64 {
    let outputs = Interpreter::new(model).unwrap().run(inputs).unwrap();
    *outputs["loss"].as_float().unwrap().first().unwrap()
}

/// `model` with everything that differentiation takes for constant at its values for `inputs`: the slope of the
/// loss through DoRA's norms is meant to be left out.
fn hold(mut model: Model, inputs: &HashMap<String, Value>) -> Model {
    let held = model.graph.nodes.iter().filter(|node| node.op == "StopGradient");
    let held: Vec<String> = held.map(|node| node.outputs[0].clone()).collect();
    let names: Vec<&str> = held.iter().map(String::as_str).collect();
    let values = Interpreter::new(&model).unwrap().values(inputs, &names).unwrap();
    let values: Vec<_> = values.iter().map(|value| value.to_tensor(DType::F64).unwrap()).collect();
    model.graph.nodes.retain(|node| node.op != "StopGradient");
    model.graph.initializers.extend(held.into_iter().zip(values));
    model
}

fn check(name: &str, export: &str, dropout: f64, freeze_a: bool, exact: bool) {
    let mut case = Case::load(name);
    (case.spec.dropout, case.spec.freeze_a, case.spec.residual) = (dropout, freeze_a, exact);
    let dir = tempfile::tempdir().unwrap();
    let folder = build::artifacts(&case, export, &dir.path().join("artifacts"));
    let manifest = folder.manifest();
    let mut inputs: HashMap<String, Value> = case.inputs.clone().into_iter().collect();
    inputs.insert("labels".into(), case.labels.clone());
    inputs.insert(DROPOUT_SEED.into(), Value::Int(ArrayD::from_elem(IxDyn(&[]), 5)));
    inputs.extend(tensors(&folder, &draw::perturbed(&folder.initial_adapter().unwrap())));
    inputs.extend(residual(&folder).map(|(_, inputs)| inputs).unwrap_or_default());

    let training = Model::load(folder.file(&manifest.files.training)).unwrap();
    let gradients = Interpreter::new(&training).unwrap().run(&inputs).unwrap();
    // Evaluation drops nothing: with dropout, the loss is that of the training graph for one seed.
    let measured = match dropout {
        0.0 => Model::load(folder.file(&manifest.files.eval)).unwrap(),
        _ => training.clone(),
    };
    let mut measured = hold(measured, &inputs);
    measured.graph.outputs.retain(|output| output.name == "loss");
    fedpeft_onnx::surgery::prune(&mut measured.graph).unwrap();
    for spec in manifest.adapter.tensors() {
        let gradient = gradients[&format!("{}.grad", spec.name)].as_float().unwrap();
        let middle = inputs[&spec.name].as_float().unwrap().clone();
        for place in draw::places(middle.len(), ENTRIES) {
            let mut at = |step: f64| {
                let mut moved = middle.clone();
                *moved.iter_mut().nth(place).unwrap() += step;
                inputs.insert(spec.name.clone(), Value::Float(moved));
                loss(&measured, &inputs)
            };
            let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let gradient = *gradient.iter().nth(place).unwrap();
            let allowed = RELATIVE * slope.abs().max(gradient.abs()) + NOTHING;
            let what = format!("{name} on {export}: {}[{place}]", spec.name);
            assert!(
                (slope - gradient).abs() <= allowed,
                "{what}: gradient {gradient}, the loss has slope {slope}"
            );
        }
        inputs.insert(spec.name.clone(), Value::Float(middle));
    }
}

macro_rules! cases {
    ($($test:ident: $case:literal on $export:literal,)*) => {$(
        #[test]
        fn $test() {
            let option = |name| stringify!($test).ends_with(name);
            let dropout = if option("dropout") { 0.3 } else { 0.0 };
            check($case, $export, dropout, option("frozen"), option("exact"));
        }
    )*};
}

cases! {
    vit_head: "vit-head" on "vit-sdpa",
    vit_bias: "vit-bias" on "vit-sdpa",
    vit_layernorm: "vit-layernorm" on "vit-sdpa",
    vit_full: "vit-full" on "vit-sdpa",
    vit_lora: "vit-lora" on "vit-sdpa",
    vit_lora_dropout: "vit-lora" on "vit-sdpa",
    vit_lora_frozen: "vit-lora" on "vit-sdpa",
    vit_lora_packed_frozen: "vit-lora-packed" on "vit-sdpa",
    vit_lora_packed_exact: "vit-lora-packed" on "vit-sdpa",
    vit_dora: "vit-dora" on "vit-sdpa",
    vit_dora_dropout: "vit-dora" on "vit-sdpa",
    vit_adapter: "vit-adapter-houlsby" on "vit-sdpa",
    vit_prompt_shallow: "vit-prompt-shallow" on "vit-sdpa",
    vit_prompt_deep: "vit-prompt-deep" on "vit-sdpa",
    vit_prefix: "vit-prefix" on "vit-sdpa",
    vit_ia3: "vit-ia3" on "vit-sdpa",
    bert_head: "bert-head" on "bert-sdpa",
    bert_bias: "bert-bias" on "bert-sdpa",
    bert_layernorm: "bert-layernorm" on "bert-sdpa",
    bert_full: "bert-full" on "bert-sdpa",
    bert_lora: "bert-lora-all" on "bert-sdpa",
    bert_lora_dropout: "bert-lora-all" on "bert-sdpa",
    bert_lora_frozen: "bert-lora-all" on "bert-sdpa",
    bert_lora_exact: "bert-lora-all" on "bert-sdpa",
    bert_dora: "bert-dora" on "bert-sdpa",
    bert_adapter: "bert-adapter-pfeiffer" on "bert-sdpa",
    bert_prompt_shallow: "bert-prompt-shallow" on "bert-sdpa",
    bert_prompt_deep: "bert-prompt-deep" on "bert-sdpa",
    bert_prefix: "bert-prefix" on "bert-sdpa",
    bert_ia3: "bert-ia3" on "bert-sdpa",
    gpt_head: "gpt-head" on "gpt-sdpa",
    gpt_bias: "gpt-bias" on "gpt-sdpa",
    gpt_layernorm: "gpt-layernorm" on "gpt-sdpa",
    gpt_full: "gpt-full" on "gpt-sdpa",
    gpt_lora: "gpt-lora" on "gpt-sdpa",
    gpt_lora_dropout: "gpt-lora-packed" on "gpt-sdpa",
    gpt_lora_frozen: "gpt-lora-packed" on "gpt-sdpa",
    gpt_lora_exact: "gpt-lora" on "gpt-sdpa",
    gpt_dora_frozen: "gpt-dora-packed" on "gpt-sdpa",
    gpt_dora: "gpt-dora" on "gpt-sdpa",
    gpt_dora_packed: "gpt-dora-packed" on "gpt-sdpa",
    gpt_adapter: "gpt-adapter-shared" on "gpt-sdpa",
    gpt_prompt_shallow: "gpt-prompt-shallow" on "gpt-sdpa",
    gpt_prompt_deep: "gpt-prompt-deep" on "gpt-sdpa",
    gpt_prefix: "gpt-prefix" on "gpt-sdpa",
    gpt_ia3: "gpt-ia3" on "gpt-sdpa",
}
