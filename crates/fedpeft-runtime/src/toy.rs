//! Small models for tests: logistic regression whose graphs, written by hand, have every operator of our
//! domain, and a network that the artifact builder takes apart.

use std::path::Path;

use fedpeft_artifacts::manifest::{
    BackboneSpec, ElementType, FORMAT_VERSION, FileRef, Files, InputSource, InputSpec, MANIFEST_FILE,
    Manifest, TaskSpec,
};
use fedpeft_codec::{Layout, TensorSpec};
use fedpeft_onnx::{DType, Data, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_protocol::Digest;

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, InputOptions, build};
use fedpeft_peft::Method;

use crate::{InMemory, Runtime, operators::DOMAIN};

pub const FEATURES: usize = 5;
pub const CLASSES: usize = 3;

pub fn runtime() -> Runtime {
    Runtime::load(None).unwrap()
}

/// Three noisy clusters.
pub fn examples(count: usize) -> InMemory {
    let noise = |i: usize| ((i * 2_654_435_761 % 1_000) as f32 / 500.0 - 1.0) * 0.4;
    let labels: Vec<i64> = (0..count).map(|i| (i % CLASSES) as i64).collect();
    let value = |i: usize| noise(i) + if i % FEATURES == (i / FEATURES) % CLASSES { 1.5 } else { 0.0 };
    InMemory::new((0..count * FEATURES).map(value).collect(), labels).unwrap()
}

/// A node of our domain.
pub fn fused(op: &str, inputs: &[&str], output: &str) -> Node {
    Node { domain: DOMAIN.into(), ..Node::new(op, inputs, &[output]) }
}

/// A model with the functions it uses.
pub fn model(graph: Graph) -> Model {
    let mut model = Model::new(graph);
    fedpeft_autodiff::functions::attach(&mut model);
    model
}

pub fn value(name: &str, shape: &[usize]) -> ValueInfo {
    let mut dims = vec![Dim::Symbol("N".into())];
    dims.extend(Dim::fixed(shape));
    ValueInfo::new(name, DType::F32, dims)
}

fn layout() -> Layout {
    let spec = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), shape: shape.into() };
    Layout::new(vec![spec("weight", &[CLASSES as u64, FEATURES as u64]), spec("bias", &[CLASSES as u64])])
        .unwrap()
}

/// `logits = (x * frozen) weightᵀ + bias`, with softmax cross-entropy; gradients if `train`.
fn graph(train: bool) -> Graph {
    let mut graph = Graph { name: "toy".into(), ..Graph::default() };
    let fixed = |name: &str, shape: &[usize]| ValueInfo::new(name, DType::F32, Dim::fixed(shape));
    graph.inputs = vec![
        value("x", &[FEATURES]),
        ValueInfo::new("labels", DType::I64, vec![Dim::Symbol("N".into())]),
        fixed("weight", &[CLASSES, FEATURES]),
        fixed("bias", &[CLASSES]),
    ];
    let scalar = |name: &str, dtype| ValueInfo::new(name, dtype, vec![]);
    graph.outputs =
        vec![scalar("loss", DType::F32), scalar("correct", DType::I64), scalar("count", DType::I64)];
    let frozen = Tensor { dtype: DType::F32, shape: vec![FEATURES], data: external(0) };
    graph.initializers.insert("frozen".into(), frozen);
    graph.initializers.insert("ones".into(), Tensor::f32([FEATURES], &[1.0; FEATURES]));
    graph.initializers.insert("classes".into(), Tensor::i64([], &[CLASSES as i64]));
    graph.initializers.insert("onoff".into(), Tensor::f32([2], &[0.0, 1.0]));
    graph.nodes = vec![
        Node::new("Mul", &["x", "frozen"], &["scaled"]),
        Node::new("LayerNormalization", &["scaled", "ones"], &["normed", "mean", "inv"]).with("axis", -1i64),
        Node::new("Gelu", &["normed"], &["features"]),
        Node::new("Gemm", &["features", "weight", "bias"], &["logits"]).with("transB", 1i64),
        Node::new("SoftmaxCrossEntropyLoss", &["logits", "labels"], &["loss", "log_prob"])
            .with("reduction", "mean"),
        Node::new("ArgMax", &["logits"], &["predicted"]).with("axis", 1i64).with("keepdims", 0i64),
        Node::new("Equal", &["predicted", "labels"], &["hit"]),
        Node::new("Cast", &["hit"], &["hits"]).with("to", 7i64),
        Node::new("ReduceSum", &["hits"], &["correct"]).with("keepdims", 0i64),
        Node::new("Size", &["labels"], &["count"]),
    ];
    if !train {
        graph.outputs.push(value("logits", &[CLASSES]));
        return graph;
    }
    graph.outputs.push(fixed("weight.grad", &[CLASSES, FEATURES]));
    graph.outputs.push(fixed("bias.grad", &[CLASSES]));
    graph.outputs.push(value("x.grad", &[FEATURES]));
    graph.initializers.insert("dim0".into(), Tensor::i64([1], &[0]));
    graph.initializers.insert("three".into(), Tensor::i64([3], &[1, -1, CLASSES as i64]));
    graph.initializers.insert("zero".into(), Tensor::i64([1], &[0]));
    graph.nodes.extend([
        Node::new("Softmax", &["logits"], &["prob"]).with("axis", -1i64),
        Node::new("OneHot", &["labels", "classes", "onoff"], &["target"]).with("axis", -1i64),
        Node::new("Cast", &["count"], &["count_f"]).with("to", 1i64),
        // -target / prob / N through softmax's gradient is (prob - target) / N.
        Node::new("Div", &["target", "prob"], &["ratio"]),
        Node::new("Div", &["ratio", "count_f"], &["ratio_n"]),
        Node::new("Neg", &["ratio_n"], &["dprob"]),
        fused("SoftmaxGrad", &["dprob", "prob"], "dlogits"),
        Node::new("Gemm", &["dlogits", "features"], &["weight.grad"]).with("transA", 1i64),
        Node::new("Reshape", &["dlogits", "three"], &["dlogits3"]),
        fused("ReduceRows", &["dlogits3"], "bias.grad"),
        Node::new("MatMul", &["dlogits", "weight"], &["dfeatures"]),
        fused("GeluGrad", &["dfeatures", "normed"], "dnormed"),
        fused("LayerNormGrad", &["dnormed", "scaled", "ones", "mean", "inv"], "dscaled"),
        Node::new("Mul", &["dscaled", "frozen"], &["x.grad"]),
    ]);
    graph
}

fn external(offset: u64) -> Data {
    Data::External { location: "backbone.bin".into(), offset }
}

/// Writes the artifact folder of the toy.
pub fn write(path: &Path) {
    let frozen: Vec<u8> = (0..FEATURES).flat_map(|i| (1.0 + i as f32 * 0.1).to_le_bytes()).collect();
    std::fs::write(path.join("backbone.bin"), frozen).unwrap();
    model(graph(true)).save(path.join("training_model.onnx")).unwrap();
    model(graph(false)).save(path.join("eval_model.onnx")).unwrap();
    for name in ["optimizer_sgd.onnx", "optimizer_adamw.onnx", "checkpoint.safetensors"] {
        std::fs::write(path.join(name), name).unwrap();
    }
    let file = |name: &str| {
        let bytes = std::fs::read(path.join(name)).unwrap();
        FileRef { name: name.into(), digest: Digest::of(&bytes), size: bytes.len() as u64 }
    };
    let manifest = Manifest {
        format: FORMAT_VERSION,
        method: Method::Head.into(),
        adapter: layout(),
        excluded: Default::default(),
        inputs: vec![InputSpec {
            name: "x".into(),
            dtype: ElementType::F32,
            shape: vec![FEATURES as u64],
            source: InputSource::Values,
        }],
        text: None,
        task: TaskSpec::classification(CLASSES as u32),
        backbone: BackboneSpec {
            values: FEATURES as u64,
            storage: Default::default(),
            source: Digest::of("toy"),
        },
        opset: fedpeft_onnx::OPSET,
        files: Files {
            training: file("training_model.onnx"),
            dp_training: None,
            eval: file("eval_model.onnx"),
            optimizer_sgd: file("optimizer_sgd.onnx"),
            optimizer_adamw: file("optimizer_adamw.onnx"),
            checkpoint: file("checkpoint.safetensors"),
            backbone: file("backbone.bin"),
        },
    };
    std::fs::write(path.join(MANIFEST_FILE), manifest.to_json().unwrap()).unwrap();
}

/// Artifacts of two layers with normalisation and GELU between them, as the builder makes them.
pub fn built(path: &Path) -> ArtifactFolder {
    let weights = |rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * 1.7).sin() * 0.5).collect();
        Tensor::f32([rows, columns], &values)
    };
    let mut graph = Graph { name: "network".into(), ..Graph::default() };
    graph.inputs.push(value("x", &[FEATURES]));
    graph.outputs.push(value("features", &[4]));
    graph.initializers = [
        ("w1".to_owned(), weights(FEATURES, 6)),
        ("b1".to_owned(), Tensor::f32([6], &[0.1; 6])),
        ("scale".to_owned(), Tensor::f32([6], &[1.0; 6])),
        ("shift".to_owned(), Tensor::f32([6], &[0.0; 6])),
        ("w2".to_owned(), weights(6, 4)),
        ("b2".to_owned(), Tensor::f32([4], &[-0.1; 4])),
    ]
    .into();
    graph.nodes = vec![
        Node::new("Gemm", &["x", "w1", "b1"], &["hidden"]),
        Node::new("LayerNormalization", &["hidden", "scale", "shift"], &["normed"]).with("axis", -1i64),
        Node::new("Gelu", &["normed"], &["active"]),
        Node::new("Gemm", &["active", "w2", "b2"], &["features"]),
    ];
    let model = path.join("network.onnx");
    Model::new(graph).save(&model).unwrap();
    let input = InputOptions {
        name: None,
        dtype: ElementType::F32,
        shape: vec![FEATURES],
        source: InputSource::Values,
    };
    let classes = CLASSES as u32;
    let options = BuildOptions {
        inputs: vec![input],
        dp_sgd: true,
        ..BuildOptions::image_classification(model, "features", 0, classes, Method::Full)
    };
    build(&options, &path.join("artifacts")).unwrap();
    ArtifactFolder::open(path.join("artifacts")).unwrap()
}
