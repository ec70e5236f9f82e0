//! Every method's loss, logits and gradients are PyTorch's.

use std::collections::{BTreeSet, HashMap};

use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::Model;

use crate::{build, case::Case, compare::assert_close, names::Names};

fn check(name: &str, export: &str) {
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

    let training = Model::load(folder.file(&manifest.files.training)).unwrap();
    let outputs = Interpreter::new(&training).unwrap().run(&inputs).unwrap();
    assert_close(outputs["loss"].as_float().unwrap(), &case.loss, &format!("{name} on {export}: loss"));
    for (ours, theirs, gradient) in &gradients {
        let got = outputs[&format!("{ours}.grad")].as_float().unwrap();
        assert_close(got, gradient, &format!("{name} on {export}: gradient of {theirs}"));
    }
    let eval = Model::load(folder.file(&manifest.files.eval)).unwrap();
    let outputs = Interpreter::new(&eval).unwrap().run(&inputs).unwrap();
    assert_close(outputs["loss"].as_float().unwrap(), &case.loss, &format!("{name} on {export}: loss"));
    assert_close(outputs["logits"].as_float().unwrap(), &case.logits, &format!("{name} on {export}: logits"));
}

/// One test for each case, on every export of its model.
macro_rules! cases {
    ($($test:ident: $case:literal on $exports:expr,)*) => {$(
        #[test]
        fn $test() {
            for export in $exports {
                check($case, export);
            }
        }
    )*};
}

const VIT: [&str; 4] = ["vit-sdpa", "vit-eager", "vit-opset14", "vit-dynamo"];
const BERT: [&str; 3] = ["bert-eager", "bert-sdpa", "bert-dynamo"];
/// The dynamo exporter folds position embeddings into constants and gives weights no names.
const BERT_NAMED: [&str; 2] = ["bert-eager", "bert-sdpa"];
const GPT_NAMED: [&str; 2] = ["gpt-eager", "gpt-sdpa"];
const GPT: [&str; 3] = ["gpt-eager", "gpt-sdpa", "gpt-dynamo"];

cases! {
    bert_adapter_houlsby: "bert-adapter-houlsby" on BERT,
    bert_adapter_pfeiffer: "bert-adapter-pfeiffer" on BERT,
    bert_adapter_shared: "bert-adapter-shared" on BERT,
    bert_bias: "bert-bias" on BERT,
    bert_dora: "bert-dora" on BERT,
    bert_full: "bert-full" on BERT_NAMED,
    bert_head: "bert-head" on BERT,
    bert_ia3: "bert-ia3" on BERT,
    bert_layernorm: "bert-layernorm" on BERT,
    bert_lora_all: "bert-lora-all" on BERT_NAMED,
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
    gpt_full: "gpt-full" on GPT_NAMED,
    gpt_head: "gpt-head" on GPT,
    gpt_ia3: "gpt-ia3" on GPT,
    gpt_layernorm: "gpt-layernorm" on GPT,
    gpt_lora_lm: "gpt-lora-lm" on GPT,
    gpt_lora_packed: "gpt-lora-packed" on GPT,
    gpt_lora: "gpt-lora" on GPT,
    gpt_prefix: "gpt-prefix" on GPT,
    gpt_prompt_deep: "gpt-prompt-deep" on GPT,
    gpt_prompt_shallow: "gpt-prompt-shallow" on GPT,
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
