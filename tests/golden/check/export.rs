//! Exported models compute what the evaluation graph computes, and merged ones with the backbone's own nodes.

use std::collections::{BTreeMap, HashMap};

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, Storage};
use fedpeft_codec::Layout;
use fedpeft_export::{Exported, Format, Formats, Trained, export};
use fedpeft_interp::Value;
use fedpeft_onnx::Model;
use ndarray::ArrayD;

use crate::{build, case::Case, draw, exports::example, runtime::Engine};

/// Largest difference of two logits relative to the largest one: both sides round to f32 at every node.
const TOLERANCE: f64 = 1e-5;

/// The adapter as inputs of a graph.
pub fn tensors(folder: &ArtifactFolder, values: &[f32]) -> HashMap<String, Value> {
    named(&folder.manifest().adapter, values)
}

/// What its factors do not hold, where the artifacts have residuals: values, and inputs of a graph.
pub fn residual(folder: &ArtifactFolder) -> Option<(Vec<f32>, HashMap<String, Value>)> {
    let layout = folder.manifest().residual().unwrap()?;
    let values: Vec<f32> = (0..layout.values()).map(|at| (at as f32 * 0.61).sin() * 0.05).collect();
    let named = named(&layout, &values);
    Some((values, named))
}

fn named(layout: &Layout, values: &[f32]) -> HashMap<String, Value> {
    let tensor = |(spec, range): (&fedpeft_codec::TensorSpec, std::ops::Range<usize>)| {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| *dim as usize).collect();
        let own = values[range].iter().map(|value| f64::from(*value)).collect();
        (spec.name.clone(), Value::Float(ArrayD::from_shape_vec(shape, own).unwrap()))
    };
    layout.ranges().map(tensor).collect()
}

fn assert_equal(got: &ArrayD<f64>, wanted: &ArrayD<f64>, what: &str) {
    assert_eq!(got.shape(), wanted.shape(), "{what}");
    let largest = wanted.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let error = (got - wanted).iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    assert!(largest > 1e-3, "{what}: logits are nothing");
    assert!(error <= TOLERANCE * largest, "{what}: logits up to {largest} differ by {error}");
}

/// How often each operator occurs.
fn operators(model: &Model) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in &model.graph.nodes {
        *counts.entry(node.op.clone()).or_default() += 1;
    }
    counts
}

fn check(name: &str, export_name: &str, freeze_a: bool, exact: bool) {
    let what = format!("{name} on {export_name}");
    let mut case = Case::load(name);
    (case.spec.freeze_a, case.spec.residual) = (freeze_a, exact);
    let dir = tempfile::tempdir().unwrap();
    let folder = build::artifacts(&case, export_name, &dir.path().join("artifacts"));
    let values = draw::perturbed(&folder.initial_adapter().unwrap());
    let (rest, given) = residual(&folder).unzip();
    let out = dir.path().join("out");
    let trained = Trained { adapter: &values, residual: rest.as_deref() };
    let Exported { files, skipped } = export(&folder, trained, &Formats::Applicable, &out, |_| ()).unwrap();
    assert!(files.iter().any(|file| file.name == "model.onnx"));
    assert!(!exact || skipped[0].1.contains("use format onnx"), "{what}: {skipped:?}");

    let model = Model::load(out.join("model.onnx")).unwrap();
    assert!(model.functions.is_empty() && model.domains.is_empty(), "{what}: {:?}", model.domains);
    assert!(model.graph.nodes.iter().all(|node| node.domain.is_empty() && !node.name.is_empty()));
    let outputs: Vec<&str> = model.graph.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(outputs, ["logits"], "{what}");
    assert!(model.graph.inputs.iter().all(|input| case.inputs.contains_key(&input.name)), "{what}");
    // Prompts, prefixes and bottleneck modules are nodes of their own.
    if !["prompt", "prefix", "adapter"].contains(&case.spec.method.as_str()) && name != "gpt-lora-tied" {
        let mut plain = case.clone();
        plain.spec.method = "head".into();
        plain.spec.bias = None;
        let plain = build::artifacts(&plain, export_name, &dir.path().join("plain"));
        let plain = fedpeft_export::inference(&plain, &plain.initial_adapter().unwrap()).unwrap();
        assert_eq!(operators(&model), operators(&plain.model), "{what}");
    }

    let eval = folder.file(&folder.manifest().files.eval);
    let alone = |value: &Value| example(value, 1);
    let whole = (case.inputs.clone(), case.labels.clone());
    let single =
        (case.inputs.iter().map(|(name, value)| (name.clone(), alone(value))).collect(), alone(&case.labels));
    for (batch, labels) in [whole, single] {
        let batch: HashMap<String, Value> = batch.into_iter().collect();
        let mut inputs = batch.clone();
        inputs.insert("labels".into(), labels);
        inputs.extend(tensors(&folder, &values));
        inputs.extend(given.clone().unwrap_or_default());
        let wanted = Engine::OnnxRuntime.run(&eval, &inputs);
        let got = Engine::OnnxRuntime.run(&out.join("model.onnx"), &batch);
        assert_equal(&got["logits"], &wanted["logits"], &what);
    }
}

macro_rules! cases {
    ($($test:ident: $case:literal on $exports:expr,)*) => {$(
        #[test]
        fn $test() {
            for export in $exports {
                let option = |name| stringify!($test).ends_with(name);
                check($case, export, option("frozen"), option("exact"));
            }
        }
    )*};
}

const VIT: [&str; 2] = ["vit-sdpa", "vit-dynamo"];
const BERT: [&str; 2] = ["bert-sdpa", "bert-dynamo"];
const GPT: [&str; 2] = ["gpt-sdpa", "gpt-dynamo"];

cases! {
    vit_head: "vit-head" on VIT,
    vit_bias: "vit-bias" on VIT,
    vit_layernorm: "vit-layernorm" on VIT,
    vit_full: "vit-full" on VIT,
    vit_lora: "vit-lora" on VIT,
    vit_lora_packed: "vit-lora-packed" on VIT,
    vit_lora_frozen: "vit-lora" on VIT,
    vit_lora_packed_frozen: "vit-lora-packed" on VIT,
    vit_lora_exact: "vit-lora" on VIT,
    vit_lora_packed_exact: "vit-lora-packed" on VIT,
    vit_dora: "vit-dora" on VIT,
    vit_dora_packed: "vit-dora-packed" on VIT,
    vit_ia3: "vit-ia3" on VIT,
    vit_adapter: "vit-adapter-houlsby" on VIT,
    vit_prompt_deep: "vit-prompt-deep" on VIT,
    vit_prompt_shallow: "vit-prompt-shallow" on VIT,
    vit_prefix: "vit-prefix" on VIT,
    bert_head: "bert-head" on BERT,
    bert_bias: "bert-bias" on BERT,
    bert_layernorm: "bert-layernorm" on BERT,
    bert_full: "bert-full" on ["bert-sdpa"],
    bert_lora: "bert-lora" on BERT,
    bert_lora_all: "bert-lora-all" on BERT,
    bert_lora_bias: "bert-lora-bias" on BERT,
    bert_lora_frozen: "bert-lora-all" on BERT,
    bert_dora_frozen: "bert-dora" on BERT,
    bert_lora_exact: "bert-lora-all" on BERT,
    bert_dora: "bert-dora" on BERT,
    bert_ia3: "bert-ia3" on BERT,
    bert_adapter: "bert-adapter-pfeiffer" on BERT,
    bert_prompt_deep: "bert-prompt-deep" on BERT,
    bert_prompt_shallow: "bert-prompt-shallow" on BERT,
    bert_prefix: "bert-prefix" on BERT,
    gpt_head: "gpt-head" on GPT,
    gpt_bias: "gpt-bias" on GPT,
    gpt_layernorm: "gpt-layernorm" on GPT,
    gpt_full: "gpt-full" on ["gpt-sdpa"],
    gpt_lora: "gpt-lora" on GPT,
    gpt_lora_packed: "gpt-lora-packed" on GPT,
    gpt_lora_lm: "gpt-lora-lm" on GPT,
    gpt_lora_tied: "gpt-lora-tied" on ["gpt-lm"],
    gpt_lora_packed_frozen: "gpt-lora-packed" on GPT,
    gpt_lora_packed_exact: "gpt-lora-packed" on GPT,
    gpt_dora: "gpt-dora" on GPT,
    gpt_dora_packed: "gpt-dora-packed" on GPT,
    gpt_ia3: "gpt-ia3" on GPT,
    gpt_adapter: "gpt-adapter-shared" on GPT,
    gpt_prompt_deep: "gpt-prompt-deep" on GPT,
    gpt_prompt_shallow: "gpt-prompt-shallow" on GPT,
    gpt_prefix: "gpt-prefix" on GPT,
    llama_lora: "llama-lora" on ["llama-eager"],
    llama_dora: "llama-dora" on ["llama-dynamo"],
    llama_ia3: "llama-ia3" on ["llama-eager"],
}

#[test]
fn weights_stored_in_half_precision_become_plain_ones() {
    let case = Case::load("vit-lora-packed");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("artifacts");
    let options = BuildOptions { storage: Storage::F16, ..build::options(&case, "vit-sdpa") };
    fedpeft_artifacts::build(&options, &path).unwrap();
    let folder = ArtifactFolder::open(path).unwrap();
    let values = draw::perturbed(&folder.initial_adapter().unwrap());
    let out = dir.path().join("out");
    export(&folder, &values, &Formats::Applicable, &out, |_| ()).unwrap();
    let model = Model::load(out.join("model.onnx")).unwrap();
    assert!(model.graph.nodes.iter().all(|node| !node.is("Cast")));
    assert!(model.graph.initializers.keys().all(|name| !name.contains("stored")));

    let eval = folder.file(&folder.manifest().files.eval);
    let batch: HashMap<String, Value> = case.inputs.clone().into_iter().collect();
    let mut inputs = batch.clone();
    inputs.insert("labels".into(), case.labels.clone());
    inputs.extend(tensors(&folder, &values));
    let wanted = Engine::OnnxRuntime.run(&eval, &inputs);
    let got = Engine::OnnxRuntime.run(&out.join("model.onnx"), &batch);
    assert_equal(&got["logits"], &wanted["logits"], "f16");
}

#[test]
fn the_safetensors_file_is_the_adapter_again() {
    let case = Case::load("bert-lora");
    let dir = tempfile::tempdir().unwrap();
    let folder = build::artifacts(&case, "bert-sdpa", &dir.path().join("artifacts"));
    let values = draw::perturbed(&folder.initial_adapter().unwrap());
    let out = dir.path().join("out");
    let formats = Formats::Only([Format::Safetensors].into());
    export(&folder, &values, &formats, &out, |_| ()).unwrap();
    let file = out.join("adapter.safetensors");
    let layout = &folder.manifest().adapter;
    assert_eq!(fedpeft_export::read_adapter(&file, layout).unwrap(), values);
    assert!(!out.join("model.onnx").exists());

    let again = export(&folder, &values, &formats, &out, |_| ()).unwrap_err().to_string();
    assert!(again.contains("is not empty"), "{again}");
    let other = build::artifacts(&Case::load("bert-head"), "bert-sdpa", &dir.path().join("other"));
    let error = fedpeft_export::read_adapter(&file, &other.manifest().adapter).unwrap_err().to_string();
    assert!(
        error.contains("adapter.safetensors") && error.contains("lora_A.weight\" is not trained"),
        "{error}"
    );
    let error = export(&other, &values, &formats, &dir.path().join("b"), |_| ()).unwrap_err().to_string();
    assert!(error.contains("values"), "{error}");
    let peft = Formats::Only([Format::Peft].into());
    let initial = other.initial_adapter().unwrap();
    let error = export(&other, &initial, &peft, &dir.path().join("b"), |_| ()).unwrap_err().to_string();
    assert!(error.contains("HF peft has no head"), "{error}");
    assert!(!dir.path().join("b").exists());
}
