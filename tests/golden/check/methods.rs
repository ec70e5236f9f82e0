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
    let names = Names::new(&build::backbone(&case, export), &full);

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

cases! {
    vit_head: "vit-head" on VIT,
    vit_bias: "vit-bias" on VIT,
    vit_layernorm: "vit-layernorm" on VIT,
    vit_full: "vit-full" on VIT,
    vit_adapter_houlsby: "vit-adapter-houlsby" on VIT,
    vit_adapter_pfeiffer: "vit-adapter-pfeiffer" on VIT,
    vit_adapter_shared: "vit-adapter-shared" on VIT,
    vit_adapter_relu: "vit-adapter-relu" on VIT,
    vit_prompt_shallow: "vit-prompt-shallow" on VIT,
    vit_prompt_deep: "vit-prompt-deep" on VIT,
    vit_prefix: "vit-prefix" on VIT,
    vit_lora: "vit-lora" on VIT,
    vit_lora_packed: "vit-lora-packed" on VIT,
    vit_dora_packed: "vit-dora-packed" on VIT,
    vit_ia3: "vit-ia3" on VIT,
}
