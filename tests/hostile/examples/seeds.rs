//! Writes what fuzzing begins with: real messages, real small models, real artifacts.
//!
//! ```sh
//! cargo run -p fedpeft-hostile --example seeds -- fuzz/corpus
//! ```

#![allow(clippy::unwrap_used, reason = "a tool of tests")]

use std::{fs, path::Path};

use fedpeft_artifacts::{BuildOptions, InputOptions, build, manifest::ElementType, manifest::InputSource};
use fedpeft_hostile::{WEIGHTS, joined};
use fedpeft_onnx::{DType, Data, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_protocol::{Digest, wire::Format};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

fn main() {
    let out = std::env::args().nth(1).unwrap_or_else(|| "fuzz/corpus".into());
    let out = Path::new(&out);
    let save = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(out.join(target)).unwrap();
        fs::write(out.join(target).join(name), bytes).unwrap();
    };
    for (name, json) in messages() {
        save("message", &format!("{name}.json"), json.to_string().as_bytes());
        save("message", &format!("{name}.msgpack"), &packed(name, &json));
    }
    save("message", "subject", b"fedpeft.v1.update.run-1.7.client-3");
    save("message", "content-type", b"application/json; charset=utf-8");
    save("message", "event.named", &Format::MessagePack.encode(&event()).unwrap());

    let values: Vec<u8> =
        [0.5f32, -1.0, 3e-8, 65_536.0, 0.0, 1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    save("adapter", "two", &[&[2, 1, 0, 0, 0x12, 0x23][..], &values].concat());
    save("adapter", "nan", &[&[1, 1, 0, 0, 0x10][..], &f32::NAN.to_le_bytes()].concat());
    save("adapter", "huge", &[&[1, 1, 0, 0, 0x10][..], &1e9f32.to_le_bytes()].concat());

    for (name, model) in models() {
        save("onnx", name, &model.to_bytes());
    }
    for (name, model) in networks() {
        save("training", name, &model.to_bytes());
        save("onnx", name, &model.to_bytes());
    }

    let folder = tempfile::tempdir().unwrap();
    for (name, method) in [("bias", "bias"), ("head", "head"), ("full", "full")] {
        let made = artifacts(&folder.path().join(name), method);
        let [manifest, checkpoint, graph] =
            ["manifest.json", "checkpoint.safetensors", "training_model.onnx"]
                .map(|file| fs::read(made.join(file)).unwrap());
        save("artifacts", name, &joined(&manifest, &checkpoint));
        save("onnx", &format!("training-{name}"), &graph);
    }
    for (name, config, weights) in encoders() {
        save("hugging_face", name, &joined(config.to_string().as_bytes(), &weights));
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        fs::write(folder.path().join("model.safetensors"), weights).unwrap();
        let model = fedpeft_hf::import(folder.path(), 3).unwrap().model;
        save("training", name, &model.to_bytes());
    }
    for (name, tokenizer) in tokenizers() {
        let text = "Cats and dogs, unhappily [MASK] \u{e9}";
        save("text", name, &joined(tokenizer.to_string().as_bytes(), text.as_bytes()));
    }
}

/// A message as its receiver would write it.
fn packed(name: &str, json: &Value) -> Vec<u8> {
    use fedpeft_protocol::{api, model, presence, round, run};
    fn again<T: serde::Serialize + serde::de::DeserializeOwned>(json: &Value) -> Vec<u8> {
        Format::MessagePack.encode(&serde_json::from_value::<T>(json.clone()).unwrap()).unwrap()
    }
    match name.split('-').next().unwrap() {
        "task" => again::<round::Task>(json),
        "update" => again::<round::Update>(json),
        "event" => again::<fedpeft_protocol::event::Event>(json),
        "report" => again::<round::RoundReport>(json),
        "create" => again::<api::CreateRun>(json),
        "record" => again::<run::RunRecord>(json),
        "view" => again::<run::RunView>(json),
        "presence" => again::<presence::Presence>(json),
        "publish" => again::<api::PublishModel>(json),
        "version" => again::<model::ModelVersion>(json),
        other => unreachable!("{other}"),
    }
}

fn event() -> fedpeft_protocol::event::Event {
    let (_, json) = messages().into_iter().find(|(name, _)| *name == "event-opened").unwrap();
    serde_json::from_value(json).unwrap()
}

fn messages() -> Vec<(&'static str, Value)> {
    let digest = Digest::of("x").to_string();
    let spec = json!({
        "model": {"name": "vit", "version": 1}, "rounds": 3, "cohort": 2, "min_clients": 2, "quorum": 1,
        "over_selection": 0.3, "soft_deadline_seconds": 5.0, "round_deadline_seconds": 9.0,
        "mode": {"kind": "buffered", "buffer": 2, "max_staleness": 3,
                 "staleness": {"kind": "polynomial", "exponent": 0.5}},
        "eligibility": {"min_examples": 1, "devices": ["cpu"], "labels": {"site": "a"}, "clients": ["c1"]},
        "max_update_norm": 10.0, "keep_updates": true,
        "stability": {"participation": 0.9, "dropout": 0.1, "delay": {"kind": "uniform", "min": 0.0, "max": 1.0}},
        "training": {"local_epochs": 2, "batch_size": 4, "learning_rate": 0.1,
                     "optimizer": {"kind": "sgd", "momentum": 0.9},
                     "schedule": {"kind": "cosine", "warmup": {"fraction": 0.1}, "span": "run"}},
        "strategy": {"kind": "fedavg"}, "evaluation": {"every": 2, "deadline_seconds": 3.0}, "seed": 7
    });
    let training = spec["training"].clone();
    let payload = json!({"in": "message", "digest": digest, "data": [0, 0, 128, 63]});
    let blob = json!({"in": "blob", "digest": digest, "size": 99});
    let task = |work: Value, adapter: &Value| {
        json!({"version": 1, "run": "r", "round": 2, "epoch": 4, "task": "r/2/c1/train/4", "manifest": digest,
               "adapter": adapter, "work": work, "deadline_ms": 1_700_000_000_000u64})
    };
    let update = |outcome: Value| {
        json!({"version": 1, "epoch": 4, "task": "r/2/c1/train/4", "outcome": outcome,
               "fetched": [{"direction": "down", "kind": "backbone", "size": 5}]})
    };
    let trained = |adapter: &Value| json!({"is": "trained", "examples": 5, "steps": 2, "loss": 0.5, "seconds": 1.5, "adapter": adapter});
    let client = |outcome: Value| {
        let mut report = json!({"client": "c1", "examples": 5, "bytes_up": 9, "bytes_down": 9, "loss": 0.5,
                                "train_seconds": 1.0});
        report.as_object_mut().unwrap().extend(outcome.as_object().unwrap().clone());
        report
    };
    let report = json!({
        "round": 1, "loss": 0.5, "accuracy": 0.75, "train_loss": 0.4, "bytes_up": 9, "bytes_down": 8,
        "bytes_by_kind": {"up.adapter": 5, "down.control": 3},
        "clients": [
            client(json!({"outcome": "accepted", "digest": digest, "update": "r/1/c1/train/4", "weight": 5})),
            client(json!({"outcome": "rejected", "reason": "why"})),
            client(json!({"outcome": "dropped"})),
        ],
        "seconds": {"select": 0.1, "broadcast": 0.1, "train": 0.1, "collect": 0.1, "aggregate": 0.1,
                    "evaluate": 0.1, "total": 0.6},
        "previous": digest, "adapter": digest, "epoch": 4, "ledger": digest
    });
    let record = json!({
        "version": 1, "run": "r", "spec": spec, "manifest": digest, "status": {"state": "failed", "reason": "why"},
        "round": 1, "adapter": digest, "epoch": 4, "ledger": digest, "created_ms": 1, "updated_ms": 2,
        "open": {"round": 2, "epoch": 4, "cohort": ["c1", "c2"], "examples": [5, 6], "opened_ms": 3}
    });
    let event = |kind: Value| {
        let mut event = json!({"version": 1, "run": "r", "at_ms": 5});
        event.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
        event
    };
    let files = json!([{"name": "manifest.json", "digest": digest, "size": 9, "kind": "artifacts"}]);
    vec![
        ("task-train", task(json!({"do": "train", "training": training, "seed": 3, "rounds": 4}), &payload)),
        ("task-evaluate", task(json!({"do": "evaluate"}), &blob)),
        ("update-inline", update(trained(&payload))),
        ("update-blob", update(trained(&blob))),
        ("update-evaluated", update(json!({"is": "evaluated", "examples": 5, "loss": 0.5, "seconds": 1.0}))),
        ("update-failed", update(json!({"is": "failed", "reason": "no memory"}))),
        (
            "event-status",
            event(json!({"event": "status", "status": {"state": "running"}, "method": "bias",
            "rounds": 3, "adapter_values": 10, "backbone_values": 100})),
        ),
        ("event-opened", event(json!({"event": "round_opened", "round": 1, "cohort": ["c1"]}))),
        (
            "event-accepted",
            event(json!({"event": "update_accepted", "round": 1, "client": "c1", "examples": 3,
            "loss": 0.5, "seconds": 1.0, "size": 9})),
        ),
        (
            "event-rejected",
            event(json!({"event": "update_rejected", "round": 1, "client": "c1", "reason": "x"})),
        ),
        ("event-closed", event(json!({"event": "round_closed", "report": report}))),
        ("report", report.clone()),
        ("create", json!({"run": "r", "spec": spec})),
        ("record", record.clone()),
        ("view", json!({"record": record, "rounds": [report]})),
        (
            "presence",
            json!({"version": 1, "client": "c1", "worker": "w", "capabilities": {"trains": true,
            "evaluates": false, "examples": 9, "device": "cpu", "free_memory_mib": 10, "labels": {"a": "b"}}}),
        ),
        ("publish", json!({"name": "m", "method": "bias", "manifest": digest, "files": files})),
        (
            "version",
            json!({"version": 1, "name": "m", "number": 1, "method": "bias", "manifest": digest,
            "files": files, "published_ms": 5}),
        ),
    ]
}

fn features(name: &str, shape: &[usize]) -> ValueInfo {
    let dims = std::iter::once(Dim::Symbol("N".into())).chain(Dim::fixed(shape)).collect();
    ValueInfo::new(name, DType::F32, dims)
}

fn weights(shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * 1.7).sin() * 0.5).collect();
    Tensor::f32(shape, &values)
}

/// Models for the loader alone: external data, functions, attributes of every kind.
fn models() -> Vec<(&'static str, Model)> {
    let mut external = Graph { name: "external".into(), ..Graph::default() };
    external.inputs.push(features("x", &[4]));
    external.outputs.push(features("y", &[4]));
    let data = Data::External { location: "weights.bin".into(), offset: WEIGHTS as u64 - 16 };
    external.initializers.insert("w".into(), Tensor { dtype: DType::F32, shape: vec![4], data });
    external.nodes.push(Node::new("Mul", &["x", "w"], &["y"]));
    let mut functions = Graph::default();
    functions.inputs.push(features("x", &[4]));
    functions.outputs.push(features("y", &[4]));
    functions.nodes.push(
        Node { domain: "fedpeft".into(), ..Node::new("GeluGrad", &["x", "x"], &["y"]) }
            .with("text", "a")
            .with("ints", vec![1i64, -2])
            .with("real", 0.5f32)
            .with("tensor", Tensor::i64([2], &[3, 4])),
    );
    let mut functions = Model::new(functions);
    fedpeft_autodiff::functions::attach(&mut functions);
    vec![("external", Model::new(external)), ("functions", functions)]
}

/// Small networks that can be trained.
fn networks() -> Vec<(&'static str, Model)> {
    let mut mlp = Graph { name: "mlp".into(), ..Graph::default() };
    mlp.inputs.push(features("x", &[5]));
    mlp.outputs.push(features("features", &[4]));
    for (name, shape) in
        [("w1", &[5, 6][..]), ("b1", &[6]), ("scale", &[6]), ("shift", &[6]), ("w2", &[6, 4]), ("b2", &[4])]
    {
        mlp.initializers.insert(name.into(), weights(shape));
    }
    mlp.nodes = vec![
        Node::new("Gemm", &["x", "w1", "b1"], &["hidden"]),
        Node::new("LayerNormalization", &["hidden", "scale", "shift"], &["normed"]).with("axis", -1i64),
        Node::new("Gelu", &["normed"], &["active"]),
        Node::new("MatMul", &["active", "w2"], &["product"]),
        Node::new("Add", &["product", "b2"], &["features"]),
    ];
    let mut patches = Graph { name: "patches".into(), ..Graph::default() };
    patches.inputs.push(features("pixels", &[1, 4, 4]));
    patches.outputs.push(features("tokens", &[4, 3]));
    patches.initializers.insert("conv".into(), weights(&[3, 1, 2, 2]));
    patches.initializers.insert("positions".into(), weights(&[1, 4, 3]));
    for (name, values) in [("tail", &[3, 4][..]), ("zero", &[0]), ("axes", &[0])] {
        patches.initializers.insert(name.into(), Tensor::i64([values.len()], values));
    }
    patches.initializers.insert("first".into(), Tensor::i64([], &[0]));
    patches.nodes = vec![
        Node::new("Conv", &["pixels", "conv"], &["map"])
            .with("kernel_shape", vec![2i64, 2])
            .with("strides", vec![2i64, 2]),
        Node::new("Shape", &["map"], &["shape"]),
        Node::new("Gather", &["shape", "first"], &["n"]).with("axis", 0i64),
        Node::new("Unsqueeze", &["n", "axes"], &["n1"]),
        Node::new("Concat", &["n1", "tail"], &["target"]).with("axis", 0i64),
        Node::new("Reshape", &["map", "target"], &["flat"]),
        Node::new("Transpose", &["flat"], &["rows"]).with("perm", vec![0i64, 2, 1]),
        Node::new("Add", &["rows", "positions"], &["sum"]),
        Node::new("Softmax", &["sum"], &["tokens"]).with("axis", -1i64),
    ];
    vec![("mlp", Model::new(mlp)), ("patches", Model::new(patches))]
}

fn artifacts(folder: &Path, method: &str) -> std::path::PathBuf {
    fs::create_dir_all(folder).unwrap();
    let model = folder.join("network.onnx");
    networks().swap_remove(0).1.save(&model).unwrap();
    let input =
        InputOptions { name: None, dtype: ElementType::F32, shape: vec![5], source: InputSource::Values };
    let method: fedpeft_peft::Peft = method.parse().unwrap();
    let options = BuildOptions {
        inputs: vec![input],
        ..BuildOptions::image_classification(model, "features", 0, 3, method)
    };
    let out = folder.join("artifacts");
    build(&options, &out).unwrap();
    out
}

/// The encoders of `tests/golden`, cut down to one layer of width 4.
fn encoders() -> Vec<(&'static str, Value, Vec<u8>)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/bert_import");
    let small = |name: &'static str| {
        let config = fs::read_to_string(golden.join(name).join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        for (key, value) in config.as_object_mut().unwrap() {
            match key.as_str() {
                "num_hidden_layers" | "n_layers" => *value = json!(1),
                "hidden_size" | "dim" | "intermediate_size" | "hidden_dim" | "vocab_size" => {
                    *value = json!(4);
                }
                "max_position_embeddings" => *value = json!(6),
                _ => {}
            }
        }
        let file = fs::read(golden.join(name).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let kept = |name: &str| !name.contains("layer.1.") && !name.contains("classifier");
        let shapes: Vec<(String, Vec<usize>)> = file
            .iter()
            .filter(|(name, _)| kept(name))
            .map(|(name, view)| {
                let most = if name.contains("position") { 6 } else { 4 };
                let dims = view.shape().iter().enumerate();
                (name.to_owned(), dims.map(|(i, dim)| (*dim).min(if i == 0 { most } else { 4 })).collect())
            })
            .collect();
        let zeros = [0u8; 4 * 6 * 4];
        let views = shapes.iter().map(|(name, shape)| {
            let bytes = &zeros[..4 * shape.iter().product::<usize>()];
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        (name, config, safetensors::serialize(views, None).unwrap())
    };
    ["bert", "roberta", "distilbert"].map(small).into()
}

fn tokenizers() -> Vec<(&'static str, Value)> {
    let file = |model: Value, splitter: Value, normalizer: Value, post: Value| {
        json!({"version": "1.0", "truncation": null, "padding": null,
               "added_tokens": [{"id": 3, "content": "[MASK]", "single_word": false, "lstrip": false,
                                 "rstrip": false, "normalized": false, "special": true}],
               "normalizer": normalizer, "pre_tokenizer": splitter, "post_processor": post, "decoder": null,
               "model": model})
    };
    let vocabulary = json!({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "[UNK]": 4, "cats": 5, "un": 6,
                            "##happily": 7, "and": 8});
    let bert = json!({"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]});
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}}});
    vec![
        (
            "wordpiece",
            file(
                json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": vocabulary}),
                json!({"type": "BertPreTokenizer"}),
                json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                   "strip_accents": null, "lowercase": true}),
                bert,
            ),
        ),
        (
            "bpe",
            file(
                json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                   "vocab": {"c": 0, "a": 1, "t": 2, "[MASK]": 3, "at": 4, "cat": 5}, "merges": ["a t", "c at"]}),
                json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+"}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]}),
                json!({"type": "NFC"}),
                template,
            ),
        ),
        (
            "unigram",
            file(
                json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["c", -1.5], ["at", -2.0], ["s", -1.0]],
                   "byte_fallback": false}),
                json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true}),
                Value::Null,
                Value::Null,
            ),
        ),
    ]
}
