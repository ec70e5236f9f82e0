//! Folders for HF peft. What is in them is checked here; that peft loads them and computes the same, by
//! `check_export.py` on what these tests leave behind.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, build, manifest::TaskSpec};
use fedpeft_export::{Formats, export};
use fedpeft_interp::Value;
use fedpeft_peft::{Ia3, Lora, Method};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::json;

use crate::{draw, export::tensors, file, runtime::Engine};

/// Tokens of the batch in `expected.safetensors`.
const LENGTH: usize = 12;

/// Exports `method` on the small BERT, with a batch and its logits in `values.safetensors`.
fn exported(method: Method) -> PathBuf {
    let name = method.name();
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peft").join(name);
    let _ = fs::remove_dir_all(&place);
    let source = place.join("source");
    fs::create_dir_all(&source).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(file::path("bert_import/bert").join(file), source.join(file)).unwrap();
    }
    fs::write(source.join("tokenizer.json"), "{}").unwrap();
    let options = BuildOptions::hugging_face(&source, LENGTH, TaskSpec::classification(3), method).unwrap();
    build(&options, &place.join("artifacts")).unwrap();
    let folder = ArtifactFolder::open(place.join("artifacts")).unwrap();
    let values = draw::perturbed(&folder.initial_adapter().unwrap());
    let out = place.join("out");
    export(&folder, &values, &Formats::Applicable, &out, |_| ()).unwrap();

    let (mut batch, _) = file::read("bert_import/bert/expected.safetensors");
    batch.remove("last_hidden_state");
    let inputs: HashMap<String, Value> = batch.into_iter().collect();
    let logits = Engine::OnnxRuntime.run(&out.join("model.onnx"), &inputs).remove("logits").unwrap();
    let mut stored: HashMap<String, Value> =
        inputs.into_iter().map(|(name, value)| (format!("input/{name}"), value)).collect();
    stored.insert("logits".into(), Value::Float(logits));
    stored.extend(tensors(&folder, &values).into_iter().filter(|(name, _)| name.starts_with("head.")));
    write(&stored, &place.join("values.safetensors"));
    out.join("peft")
}

fn write(tensors: &HashMap<String, Value>, path: &Path) {
    let encode = |(name, value): (&String, &Value)| {
        let (dtype, bytes): (_, Vec<u8>) = match value {
            Value::Float(values) => {
                (Dtype::F32, values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect())
            }
            Value::Int(values) => (Dtype::I64, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Value::Bool(_) => panic!("{name} is no tensor of a batch"),
        };
        (name.clone(), dtype, value.shape().to_vec(), bytes)
    };
    let encoded: Vec<_> = tensors.iter().map(encode).collect();
    let views = encoded.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The configuration and the tensors' shapes.
fn read(folder: &Path) -> (serde_json::Value, HashMap<String, Vec<usize>>) {
    let config = serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    (config, file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect())
}

fn query(role: &str) -> String {
    format!("base_model.model.encoder.layer.0.attention.self.query.{role}")
}

#[test]
fn lora() {
    let method = Lora { rank: 3, alpha: 5.0, ..Lora::default() };
    let (config, tensors) = read(&exported(Method::Lora(method)));
    assert_eq!((&config["peft_type"], &config["r"]), (&json!("LORA"), &json!(3)));
    assert_eq!((&config["lora_alpha"], &config["use_dora"]), (&json!(5.0), &json!(false)));
    assert_eq!(config["target_modules"][0], "encoder.layer.0.attention.self.query");
    assert_eq!(tensors[&query("lora_A.weight")], [3, 16]);
    assert_eq!(tensors[&query("lora_B.weight")], [16, 3]);
    assert_eq!(tensors.len(), 2 * 2 * 2);
}

#[test]
fn dora() {
    let method = Lora { rank: 3, alpha: 5.0, targets: vec!["query".into(), "up".into()], ..Lora::default() };
    let (config, tensors) = read(&exported(Method::Dora(method)));
    assert_eq!((&config["peft_type"], &config["use_dora"]), (&json!("LORA"), &json!(true)));
    assert_eq!(tensors[&query("lora_magnitude_vector")], [16]);
    assert_eq!(tensors["base_model.model.encoder.layer.1.intermediate.dense.lora_B.weight"], [24, 3]);
    assert_eq!(tensors.len(), 2 * 2 * 3);
}

#[test]
fn ia3() {
    let folder = exported(Method::Ia3(Ia3::default()));
    let (config, tensors) = read(&folder);
    assert_eq!(config["peft_type"], "IA3");
    let inner = ["encoder.layer.0.output.dense", "encoder.layer.1.output.dense"];
    assert_eq!(config["feedforward_modules"], json!(inner));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 6);
    assert_eq!(tensors["base_model.model.encoder.layer.0.attention.self.key.ia3_l"], [16, 1]);
    assert_eq!(tensors["base_model.model.encoder.layer.0.output.dense.ia3_l"], [1, 24]);
    let head = fs::read(folder.join("head.safetensors")).unwrap();
    let head = SafeTensors::deserialize(&head).unwrap();
    assert_eq!(head.tensor("head.weight").unwrap().shape(), [16, 3]);
}
