//! Artifacts of Hugging Face folders: the prepared graph still computes what `transformers` computes, and adapter
//! tensors are called what they are called there.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use fedpeft_artifacts::{ArtifactFolder, BuildError, BuildOptions, build, manifest::TaskSpec, source_digest};
use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{DType, Model, Tensor};
use fedpeft_passes::{InputDecl, PrepareOptions, prepare};
use fedpeft_peft::Method;
use safetensors::SafeTensors;
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert_import").join(name)
}

/// A copy of a tiny model, with a tokenizer beside it.
fn model(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden(name).join(file), folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    folder
}

fn options(folder: &Path) -> BuildOptions {
    BuildOptions::hugging_face(folder, 12, TaskSpec::classification(3), Method::Bias).unwrap()
}

#[test]
fn prepared_encoders_compute_what_transformers_computes() {
    for name in ["bert", "distilbert", "roberta"] {
        let encoder = fedpeft_hf::import(&golden(name), 12).unwrap();
        let declared = encoder.model.graph.inputs.iter().map(|input| InputDecl {
            name: Some(input.name.clone()),
            dtype: DType::I64,
            shape: vec![12],
        });
        let prepare_options =
            PrepareOptions { output: fedpeft_hf::OUTPUT.to_owned(), inputs: declared.collect() };
        let mut prepared = prepare(encoder.model, &prepare_options).unwrap();
        assert!(prepared.parameters.contains("embeddings.word_embeddings.weight"));
        prepared.fold_frozen(&Default::default()).unwrap();
        let output = prepared.graph.outputs[0].name.clone();
        let prepared = Model::new(prepared.graph);

        let bytes = fs::read(golden(name).join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let ints = |view: safetensors::tensor::TensorView<'_>| {
            let values: Vec<i64> =
                view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
            Tensor::i64(view.shape(), &values)
        };
        let wanted = tensors.tensor(fedpeft_hf::OUTPUT).unwrap();
        let wanted = wanted.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
        let mask = ints(tensors.tensor("attention_mask").unwrap()).as_i64().unwrap();
        let inputs: HashMap<String, Value> = tensors
            .tensors()
            .into_iter()
            .filter(|(name, _)| name != fedpeft_hf::OUTPUT)
            .map(|(name, view)| (name, Value::from_tensor(&ints(view)).unwrap()))
            .collect();
        let found = Interpreter::new(&prepared).unwrap().run(&inputs).unwrap();
        let found = found[&output].as_float().unwrap();
        let width = found.shape()[2];
        // RoBERTa gives padding a position of its own, which no other token sees.
        let counts = |at: usize| name != "roberta" || mask[at / width] == 1;
        let differences = found.iter().zip(wanted).enumerate().filter(|(at, _)| counts(*at));
        let worst = differences.map(|(_, (a, b))| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-4, "{name}: hidden states differ by {worst}");
    }
}

#[test]
fn tensors_are_called_what_transformers_calls_them() {
    let folder = model("roberta");
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("artifacts");
    let manifest = build(&options(folder.path()), &path).unwrap();
    let names: Vec<&str> = manifest.adapter.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert!(names.contains(&"encoder.layer.1.attention.self.query.bias"), "{names:?}");
    // Two norms, four projections and two layers of the MLP in each of two blocks, one norm before them; the head.
    assert_eq!(names.len(), 2 * 8 + 1 + 2);
    let inputs: Vec<&str> = manifest.inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(inputs, ["input_ids", "attention_mask"]);
    let text = manifest.text.as_ref().unwrap();
    assert_eq!((text.max_length, text.vocabulary, text.pad_id), (12, 64, 1));
    ArtifactFolder::open(&path).unwrap().verify().unwrap();
}

#[test]
fn the_source_is_known_by_its_configuration_and_weights() {
    let folder = model("bert");
    let before = source_digest(folder.path()).unwrap();
    assert_eq!(options(folder.path()).inputs.len(), 3);
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap().replace("1e-12", "1e-5");
    fs::write(&config, text).unwrap();
    assert_ne!(source_digest(folder.path()).unwrap(), before);

    let refused = |change: &dyn Fn(&mut BuildOptions), said: &str| {
        let mut options = options(folder.path());
        change(&mut options);
        let error = build(&options, &folder.path().join("out")).unwrap_err().to_string();
        assert!(error.contains(said) && !error.contains('\n'), "{error}");
    };
    refused(&|o| o.inputs.truncate(2), "token_type_ids");
    refused(&|o| o.inputs.iter_mut().for_each(|input| input.shape = vec![21]), "1 to 20 tokens");
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    refused(&|_| (), "tokenizer.json");
    fs::remove_file(config).unwrap();
    let method = Method::Bias;
    let error = BuildOptions::hugging_face(folder.path(), 12, TaskSpec::classification(3), method);
    assert!(matches!(error, Err(BuildError::HuggingFace(_))));
}
