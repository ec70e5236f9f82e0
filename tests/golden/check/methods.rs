//! Every method's loss, logits and gradients are PyTorch's.

use std::collections::{BTreeSet, HashMap};

use fedpeft_interp::Value;

use crate::{build, case::Case, clipped, compare::assert_close, names::Names, runtime::Engine};

fn check(name: &str, export: &str, engines: &[Engine]) {
    let case = Case::load(name);
    let dir = tempfile::tempdir().unwrap();
    let folder = build::artifacts(&case, export, &dir.path().join("artifacts"));
    let manifest = folder.manifest();
    let full = Case::load(&format!("{}-full", case.spec.model));
    let names = Names::new(&build::backbone(&case.inputs, export), &full);

    let mut inputs: HashMap<String, Value> = case.inputs.clone().into_iter().collect();
    inputs.insert("labels".into(), case.labels.clone());
    let mut gradients = Vec::new();
    for spec in manifest.adapter.tensors() {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| *dim as usize).collect();
        let (theirs, order) = names.theirs(&spec.name);
        let Some(trained) = case.trained.get(&theirs) else {
            panic!("{name} on {export}: {} is trained, PyTorch trains {:?}", spec.name, case.trained.keys());
        };
        inputs.insert(spec.name.clone(), Value::Float(order.of(&trained.initial, &shape)));
        gradients.push((spec.name.as_str(), theirs, order.of(&trained.gradient, &shape)));
    }
    let used: BTreeSet<&str> = gradients.iter().map(|(_, theirs, _)| theirs.as_str()).collect();
    let missing: Vec<_> = case.trained.keys().filter(|name| !used.contains(name.as_str())).collect();
    assert!(
        missing.is_empty() && used.len() == gradients.len(),
        "{name} on {export}: not trained: {missing:?}"
    );

    let [training, eval] =
        [&manifest.files.training, &manifest.files.eval].map(|reference| folder.file(reference));
    for engine in engines {
        let what = |value: &str| format!("{name} on {export} by {engine:?}: {value}");
        let outputs = engine.run(&training, &inputs);
        assert_close(&outputs["loss"], &case.loss, &what("loss"));
        for (ours, theirs, gradient) in &gradients {
            assert_close(
                &outputs[&format!("{ours}.grad")],
                gradient,
                &what(&format!("gradient of {theirs}")),
            );
        }
        let outputs = engine.run(&eval, &inputs);
        assert_close(&outputs["loss"], &case.loss, &what("loss"));
        assert_close(&outputs["logits"], &case.logits, &what("logits"));
    }
}

/// One test for each case, on every export of its model, and on ONNX Runtime for the first of them.
macro_rules! cases {
    ($($test:ident: $case:literal on $exports:expr,)*) => {$(
        #[test]
        fn $test() {
            let (first, rest) = $exports.split_first().unwrap();
            check($case, first, &[Engine::Interpreter, Engine::OnnxRuntime]);
            for export in rest {
                check($case, export, &[Engine::Interpreter]);
            }
        }
    )*

    /// The gradients of each example.
    mod per_example {
        use super::*;

        $(#[test]
        fn $test() {
            let (first, rest) = $exports.split_first().unwrap();
            clipped::check($case, first, &[Engine::Interpreter, Engine::OnnxRuntime]);
            for export in rest {
                clipped::check($case, export, &[Engine::Interpreter]);
            }
        })*
    }};
}

const VIT: [&str; 4] = ["vit-sdpa", "vit-eager", "vit-opset14", "vit-dynamo"];
const BERT: [&str; 3] = ["bert-eager", "bert-sdpa", "bert-dynamo"];
const GPT: [&str; 3] = ["gpt-eager", "gpt-sdpa", "gpt-dynamo"];
/// Of a table of positions, the dynamo exporter keeps the rows that are read; of rotary ones it makes constants.
const BERT_WHOLE: [&str; 2] = ["bert-eager", "bert-sdpa"];
const GPT_WHOLE: [&str; 2] = ["gpt-eager", "gpt-sdpa"];

const LLAMA: [&str; 2] = ["llama-eager", "llama-dynamo"];

cases! {
    bert_adapter_houlsby: "bert-adapter-houlsby" on BERT,
    bert_adapter_pfeiffer: "bert-adapter-pfeiffer" on BERT,
    bert_adapter_shared: "bert-adapter-shared" on BERT,
    bert_bias: "bert-bias" on BERT,
    bert_dora: "bert-dora" on BERT,
    bert_full: "bert-full" on BERT_WHOLE,
    bert_head: "bert-head" on BERT,
    bert_ia3: "bert-ia3" on BERT,
    bert_layernorm: "bert-layernorm" on BERT,
    bert_lora_all: "bert-lora-all" on BERT,
    bert_lora_bias: "bert-lora-bias" on BERT,
    bert_lora: "bert-lora" on BERT,
    bert_loss_multi_label: "bert-loss-multi-label" on BERT,
    bert_loss_regression: "bert-loss-regression" on BERT,
    bert_loss_smoothing: "bert-loss-smoothing" on BERT,
    bert_loss_weights: "bert-loss-weights" on BERT,
    bert_prefix: "bert-prefix" on BERT,
    bert_prompt_deep: "bert-prompt-deep" on BERT,
    bert_prompt_shallow: "bert-prompt-shallow" on BERT,
    gpt_adapter_houlsby: "gpt-adapter-houlsby" on GPT,
    gpt_adapter_pfeiffer: "gpt-adapter-pfeiffer" on GPT,
    gpt_adapter_shared: "gpt-adapter-shared" on GPT,
    gpt_bias: "gpt-bias" on GPT,
    gpt_dora_packed: "gpt-dora-packed" on GPT,
    gpt_dora: "gpt-dora" on GPT,
    gpt_full: "gpt-full" on GPT_WHOLE,
    gpt_head: "gpt-head" on GPT,
    gpt_ia3: "gpt-ia3" on GPT,
    gpt_layernorm: "gpt-layernorm" on GPT,
    gpt_lora_lm: "gpt-lora-lm" on GPT,
    gpt_lora_packed: "gpt-lora-packed" on GPT,
    gpt_lora: "gpt-lora" on GPT,
    gpt_lora_tied: "gpt-lora-tied" on ["gpt-lm"],
    gpt_prefix: "gpt-prefix" on GPT,
    gpt_prompt_deep: "gpt-prompt-deep" on GPT,
    gpt_prompt_shallow: "gpt-prompt-shallow" on GPT,
    llama_adapter_houlsby: "llama-adapter-houlsby" on LLAMA,
    llama_dora: "llama-dora" on LLAMA,
    llama_full: "llama-full" on ["llama-eager"],
    llama_head: "llama-head" on LLAMA,
    llama_ia3: "llama-ia3" on LLAMA,
    llama_layernorm: "llama-layernorm" on LLAMA,
    llama_lora: "llama-lora" on LLAMA,
    vit_adapter_houlsby: "vit-adapter-houlsby" on VIT,
    vit_adapter_pfeiffer: "vit-adapter-pfeiffer" on VIT,
    vit_adapter_relu: "vit-adapter-relu" on VIT,
    vit_adapter_shared: "vit-adapter-shared" on VIT,
    vit_bias: "vit-bias" on VIT,
    vit_dora_packed: "vit-dora-packed" on VIT,
    vit_dora: "vit-dora" on VIT,
    vit_full: "vit-full" on VIT,
    vit_head: "vit-head" on VIT,
    vit_ia3: "vit-ia3" on VIT,
    vit_layernorm: "vit-layernorm" on VIT,
    vit_lora_packed: "vit-lora-packed" on VIT,
    vit_lora: "vit-lora" on VIT,
    vit_prefix: "vit-prefix" on VIT,
    vit_prompt_deep: "vit-prompt-deep" on VIT,
    vit_prompt_shallow: "vit-prompt-shallow" on VIT,
}
