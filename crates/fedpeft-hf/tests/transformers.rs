//! Imported encoders on ONNX Runtime compute what `transformers` computes; `tests/golden/bert_import.py` wrote
//! down what that is.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::{fs, path::PathBuf, sync::OnceLock};

use fedpeft_hf::{OUTPUT, import};
use fedpeft_onnx::Model;
use ort::{
    environment::Environment,
    session::{Session, SessionInputValue},
    value::Tensor,
};
use safetensors::SafeTensors;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert_import").join(name)
}

/// What a file of inputs and expected outputs holds.
struct Expected {
    /// Name, shape and values of every input.
    inputs: Vec<(String, Vec<i64>, Vec<i64>)>,
    outputs: Vec<f32>,
    shape: Vec<usize>,
}

impl Expected {
    fn read(path: PathBuf, output: &str) -> Self {
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let wanted = tensors.tensor(output).unwrap();
        let inputs = tensors.tensors().into_iter().filter(|(name, _)| name != output).map(|(name, view)| {
            let values = view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
            (name, view.shape().iter().map(|dim| *dim as i64).collect(), values)
        });
        let outputs = wanted.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Self { inputs: inputs.collect(), outputs, shape: wanted.shape().to_vec() }
    }

    fn mask(&self) -> &[i64] {
        &self.inputs.iter().find(|(name, ..)| name == "attention_mask").unwrap().2
    }
}

fn environment() -> &'static Environment {
    static LOADED: OnceLock<Environment> = OnceLock::new();
    LOADED.get_or_init(|| {
        let library = fedpeft_testkit::assets().ort_lib().unwrap();
        ort::init_from(library).unwrap().build().unwrap()
    })
}

fn run(model: &Model, expected: &Expected) -> Vec<f32> {
    let mut session = Session::builder(environment()).unwrap().commit_from_memory(&model.to_bytes()).unwrap();
    let inputs: Vec<(String, SessionInputValue<'_>)> = expected
        .inputs
        .iter()
        .map(|(name, shape, values)| {
            let tensor = Tensor::from_array((shape.clone(), values.clone())).unwrap();
            (name.clone(), tensor.into())
        })
        .collect();
    let outputs = session.run(inputs).unwrap();
    outputs[OUTPUT].try_extract_tensor::<f32>().unwrap().1.to_vec()
}

fn worst(found: impl Iterator<Item = f32>, wanted: impl Iterator<Item = f32>) -> f32 {
    let (found, wanted): (Vec<f32>, Vec<f32>) = (found.collect(), wanted.collect());
    assert_eq!(found.len(), wanted.len());
    found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// `everywhere`: at padding too. RoBERTa gives padding a position of its own, which no other token sees.
fn check(name: &str, everywhere: bool) {
    let expected = Expected::read(golden(name).join("expected.safetensors"), OUTPUT);
    let encoder = import(&golden(name), 12).unwrap();
    let found = run(&encoder.model, &expected);
    let width = expected.shape[2];
    let counts = |values: &[f32]| -> Vec<f32> {
        let rows = values.chunks(width).zip(expected.mask());
        rows.filter(|(_, mask)| everywhere || **mask == 1).flat_map(|(row, _)| row.to_vec()).collect()
    };
    let worst = worst(counts(&found).into_iter(), counts(&expected.outputs).into_iter());
    assert!(worst < 1e-4, "{name}: hidden states differ by {worst}");
}

#[test]
fn bert() {
    check("bert", true);
}

#[test]
fn distilbert_in_bf16_with_relu() {
    check("distilbert", true);
}

#[test]
fn roberta_in_f16_with_tanh_gelu_and_a_head() {
    check("roberta", false);
}

#[test]
fn minilm() {
    let expected = Expected::read(golden("minilm.safetensors"), "first_and_last");
    let encoder = import(&fedpeft_testkit::assets().minilm().unwrap(), 16).unwrap();
    let parameters: usize = encoder.model.graph.initializers.values().map(fedpeft_onnx::Tensor::len).sum();
    // 22,713,216 with the pooler, which no feature passes through; and our few constants.
    assert!((22_565_376..22_565_476).contains(&parameters), "{parameters}");
    let found = run(&encoder.model, &expected);
    let width = expected.shape[2];
    let row = |sentence: usize, token: usize| found[(sentence * 16 + token) * width..][..width].to_vec();
    let lengths = expected.mask().chunks(16).map(|mask| mask.iter().sum::<i64>() as usize);
    let found = lengths.enumerate().flat_map(|(i, length)| [row(i, 0), row(i, length - 1)]).flatten();
    let worst = worst(found, expected.outputs.iter().copied());
    assert!(worst < 1e-4, "hidden states differ by {worst}");
}

#[test]
fn damaged_folders_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = |length| import(folder.path(), length).unwrap_err().to_string();
    let copy = |file: &str| fs::copy(golden("bert").join(file), folder.path().join(file)).unwrap();
    assert!(error(12).contains("config.json"));
    copy("config.json");
    assert!(error(21).contains("1 to 20"), "{}", error(21));
    assert!(error(12).contains("model.safetensors"));
    fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    assert!(error(12).contains("pytorch_model.bin is there"), "{}", error(12));

    copy("model.safetensors");
    let whole = fs::read(folder.path().join("model.safetensors")).unwrap();
    fs::write(folder.path().join("model.safetensors"), &whole[..whole.len() - 1]).unwrap();
    assert!(error(12).contains("not a safetensors file"), "{}", error(12));
    fs::copy(golden("roberta/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert!(error(12).contains("no tensor \"embeddings.word_embeddings.weight\""), "{}", error(12));

    copy("model.safetensors");
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    fs::write(folder.path().join("config.json"), config.replace("\"vocab_size\": 64", "\"vocab_size\": 65"))
        .unwrap();
    let said = error(12);
    assert!(said.contains("[64, 16]") && said.contains("[65, 16]") && !said.contains('\n'), "{said}");
}

#[test]
fn damage_is_an_error_or_a_model_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden("bert/config.json"), folder.path().join("config.json")).unwrap();
    let whole = fs::read(golden("bert/model.safetensors")).unwrap();
    for at in (0..whole.len()).step_by(97).chain(0..64) {
        let mut bytes = whole.clone();
        bytes[at] = bytes[at].wrapping_add(7);
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let _ = import(folder.path(), 12);
    }
}
