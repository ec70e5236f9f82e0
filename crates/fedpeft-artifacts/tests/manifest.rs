//! The manifest of a small text model: what is in it, and what a stranger's may not say.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::path::Path;

use fedpeft_artifacts::{
    ArtifactFolder, BuildError, BuildOptions, FolderError, InputOptions, Manifest, TextOptions, build,
    manifest::{ElementType, InputSource, ManifestError, TaskSpec},
};
use fedpeft_onnx::{DType, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_peft::{Method, Pooling};
use serde_json::{Value, json};

const TOKENS: usize = 6;

/// Embeddings of tokens, and of the mask's shape what exporters leave of it.
fn export(path: &Path) {
    let dims = || vec![Dim::Symbol("N".into()), Dim::Symbol("T".into())];
    let mut graph = Graph { name: "text".into(), ..Graph::default() };
    graph.inputs =
        ["input_ids", "attention_mask"].map(|name| ValueInfo::new(name, DType::I64, dims())).to_vec();
    graph.outputs.push(ValueInfo { name: "hidden".into(), dtype: DType::F32, shape: None });
    let table: Vec<f32> = (0..60).map(|i| (i as f32).sin()).collect();
    graph.initializers.insert("table".into(), Tensor::f32([20, 3], &table));
    graph.initializers.insert("last".into(), Tensor::i64([1], &[-1]));
    graph.nodes = vec![
        Node::new("Gather", &["table", "input_ids"], &["embedded"]).with("axis", 0i64),
        Node::new("Shape", &["attention_mask"], &["shape"]),
        Node::new("ConstantOfShape", &["shape"], &["zeros"]),
        Node::new("Unsqueeze", &["zeros", "last"], &["column"]),
        Node::new("Add", &["embedded", "column"], &["hidden"]),
    ];
    Model::new(graph).save(path).unwrap();
}

fn options(folder: &Path) -> BuildOptions {
    let (model, tokenizer) = (folder.join("text.onnx"), folder.join("my tokenizer.json"));
    export(&model);
    std::fs::write(&tokenizer, "{}").unwrap();
    BuildOptions {
        model,
        output: "hidden".into(),
        inputs: vec![
            InputOptions::tokens("input_ids", InputSource::TokenIds, TOKENS),
            InputOptions::tokens("attention_mask", InputSource::AttentionMask, TOKENS),
        ],
        text: Some(TextOptions { tokenizer, vocabulary: 20, pad_id: 0 }),
        task: TaskSpec::classification(3),
        method: Method::Head.into(),
        seed: 0,
        pooling: Pooling::Mean,
        storage: Default::default(),
        dp_sgd: false,
    }
}

fn built(change: impl FnOnce(&mut BuildOptions)) -> (ArtifactFolder, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    change(&mut options);
    build(&options, &folder.path().join("artifacts")).unwrap();
    (ArtifactFolder::open(folder.path().join("artifacts")).unwrap(), folder)
}

#[test]
fn text_models_carry_their_tokenizer() {
    let (artifacts, _folder) = built(|_| ());
    let manifest = artifacts.manifest();
    let text = manifest.text.as_ref().unwrap();
    assert_eq!((text.max_length, text.vocabulary, text.tokenizer.name.as_str()), (6, 20, "tokenizer.json"));
    assert_eq!(std::fs::read_to_string(artifacts.file(&text.tokenizer)).unwrap(), "{}");
    assert!(manifest.all_files().iter().any(|(file, _)| *file == &text.tokenizer));
    artifacts.verify().unwrap();
    std::fs::write(artifacts.file(&text.tokenizer), "[]").unwrap();
    assert!(matches!(artifacts.verify(), Err(FolderError::Digest { .. })));
}

#[test]
fn inputs_are_those_that_the_graphs_read() {
    let names = |pooling: Pooling| {
        let (artifacts, _folder) = built(|options| options.pooling = pooling);
        let inputs = artifacts.manifest().inputs.iter();
        inputs.map(|input| (input.name.clone(), input.dtype)).collect::<Vec<_>>()
    };
    let (mask, ids) =
        (("attention_mask".to_owned(), ElementType::I64), ("input_ids".to_owned(), ElementType::I64));
    // Pooling needs the mask, of which this model reads the shape alone.
    assert_eq!(names(Pooling::Mean), [ids.clone(), mask]);
    assert_eq!(names(Pooling::Cls), [ids]);
}

#[test]
fn builds_that_cannot_be_are_named() {
    let refused = |change: &dyn Fn(&mut BuildOptions), expected: &str| {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path());
        change(&mut options);
        let error = build(&options, &folder.path().join("artifacts")).unwrap_err();
        assert!(error.to_string().contains(expected) && !error.to_string().contains('\n'), "{error}");
        assert!(!folder.path().join("artifacts").exists());
        error
    };
    let text = |change: fn(&mut TextOptions)| move |o: &mut BuildOptions| change(o.text.as_mut().unwrap());
    refused(&text(|text| text.pad_id = 20), "pad_id 20");
    refused(&text(|text| text.vocabulary = 0), "vocabulary of 0");
    let error = refused(&text(|text| text.tokenizer = "/nonexistent/t.json".into()), "/nonexistent/t.json");
    assert!(matches!(error, BuildError::Io { .. }));
    refused(&|o| o.inputs[0].source = InputSource::TokenTypes, "no input is made from token ids");
    refused(&|o| o.inputs[1].name = Some("ids".into()), "no input \"ids\"");
    let smoothed = TaskSpec::Classification { classes: 3, label_smoothing: 1.5, class_weights: vec![] };
    refused(&move |o| o.task = smoothed.clone(), "label_smoothing");
    // The model's last dimension is 3: it has its own head of a vocabulary of 3, and `head` trains no other.
    refused(&|o| o.task = TaskSpec::CausalLm { vocabulary: 3 }, "method head trains nothing");
}

#[test]
fn what_a_stranger_may_not_say_is_refused() {
    let (artifacts, _folder) = built(|_| ());
    let valid = serde_json::to_value(artifacts.manifest()).unwrap();
    let read = |value: &Value| Manifest::from_json(value.to_string().as_bytes());
    assert_eq!(read(&valid).unwrap(), *artifacts.manifest());
    let refused = |pointer: &str, replacement: Value, expected: &str| {
        let mut wrong = valid.clone();
        *wrong.pointer_mut(pointer).unwrap() = replacement;
        let error = read(&wrong).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n') && error.len() < 600, "{error}");
    };
    refused("/format", json!(1), "format 1, this program reads format 2: rebuild the artifacts");
    refused("/inputs", json!([]), "1 to 16 inputs");
    refused("/inputs/0/shape", json!([0]), "shape");
    refused("/inputs/0/shape", json!([u64::MAX, 2]), "shape");
    refused("/inputs/0/dtype", json!("f32"), "i64 values");
    refused("/inputs/0/dtype", json!("f64"), "f64");
    refused("/inputs/0/source/kind", json!("smell"), "smell");
    refused("/inputs/1/name", json!("input_ids"), "given twice");
    refused("/inputs/0/name", json!("labels"), "name of the labels");
    refused("/inputs/0/name", json!("head.bias"), "name of the labels or of an adapter tensor");
    refused("/text/tokenizer/name", json!("../tokenizer.json"), "file names are");
    refused("/files/eval/name", json!("manifest.json"), "two files \"manifest.json\"");
    refused("/files/eval/name", json!("training_model.onnx"), "two files \"training_model.onnx\"");
    for name in ["", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\0b", &"x".repeat(129)] {
        refused("/files/backbone/name", json!(name), "file names are");
    }
    let exact = json!([{ "kind": "lora", "residual": true }]);
    refused("/method", exact, "residuals, but the adapter has no pair of LoRA factors");
    refused("/text/max_length", json!(7), "max_length 7");
    refused("/text/vocabulary", json!(u32::MAX), "vocabulary");
    refused("/text/pad_id", json!(20), "pad_id");
    refused("/task/classes", json!(1), "classes must be at least 2");
    refused("/task", json!({ "kind": "causal_lm", "vocabulary": 1 }), "tokens must be at least 2");
    refused("/task", json!({ "kind": "regression", "outputs": u32::MAX }), "outputs must be");
    refused(
        "/task",
        json!({ "kind": "classification", "classes": 2, "class_weights": [1.0] }),
        "class_weights",
    );

    let error = Manifest::from_json(b"{\"format\": 2}").unwrap_err();
    assert!(matches!(error, ManifestError::Parse(_)), "{error}");
}
