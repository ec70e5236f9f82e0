//! A backbone that no round waits for, and images to train it on.

use std::path::{Path, PathBuf};

use fedpeft_artifacts::{
    BuildOptions, InputOptions, build,
    manifest::{ElementType, InputSource},
};
use fedpeft_onnx::{DType, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_peft::Method;

use crate::world::CLIENTS;

const PIXELS: usize = 8;
const CLASSES: usize = 3;
/// With all of them trained an adapter has 136 KiB, more than [`crate::broker::MAX_PAYLOAD`] leaves room for.
const FEATURES: usize = 512;
const PER_CLIENT: usize = 40;
const HELD_OUT: usize = 60;

/// Builds the artifacts of `method`: of `bias` the adapter travels in messages, of `full` as blobs.
pub fn artifacts(folder: &Path, method: &Method) -> PathBuf {
    let model = folder.join("backbone.onnx");
    if !model.exists() {
        export(&model);
    }
    let destination = folder.join(method.name());
    let source = InputSource::Image { mean: vec![0.3], std: vec![0.3] };
    let shape = vec![1, PIXELS, PIXELS];
    let options = BuildOptions {
        inputs: vec![InputOptions { name: None, dtype: ElementType::F32, shape, source }],
        ..BuildOptions::image_classification(model, "features", PIXELS, CLASSES as u32, method.clone())
    };
    build(&options, &destination).unwrap();
    destination
}

/// Flatten, one hidden layer, GELU.
fn export(path: &Path) {
    let inputs = PIXELS * PIXELS;
    let weights: Vec<f32> = (0..inputs * FEATURES).map(|i| scatter(i, 997) as f32 / 997.0 - 0.5).collect();
    let dims = |shape: &[usize]| [vec![Dim::Symbol("N".into())], Dim::fixed(shape)].concat();
    let mut graph = Graph { name: "small".into(), ..Graph::default() };
    graph.inputs.push(ValueInfo::new("x", DType::F32, dims(&[1, PIXELS, PIXELS])));
    graph.outputs.push(ValueInfo::new("features", DType::F32, dims(&[FEATURES])));
    graph.initializers.insert("weight".into(), Tensor::f32([inputs, FEATURES], &weights));
    graph.initializers.insert("bias".into(), Tensor::f32([FEATURES], &[0.1; FEATURES]));
    graph.nodes = vec![
        Node::new("Flatten", &["x"], &["flat"]).with("axis", 1i64),
        Node::new("Gemm", &["flat", "weight", "bias"], &["hidden"]),
        Node::new("Gelu", &["hidden"], &["features"]),
    ];
    Model::new(graph).save(path).unwrap();
}

/// IDX files of noisy images whose bright rows tell the class, and their description. Every image comes twice, and
/// every other one under two labels, so that training never comes to rest.
pub fn data(folder: &Path) -> PathBuf {
    for (split, count) in [("train", PER_CLIENT * CLIENTS as usize), ("test", HELD_OUT)] {
        let class = |image: usize| image / 2 % CLASSES;
        let pixel = |image: usize, at: usize| {
            let bright = at / PIXELS % CLASSES == class(image);
            let image = image / 2;
            u8::try_from(scatter(image * 31 + at * 17, 90) + if bright { 150 } else { 0 }).unwrap()
        };
        let pixels = (0..count).flat_map(|image| (0..PIXELS * PIXELS).map(move |at| pixel(image, at)));
        let (count_word, side) = (u32::try_from(count).unwrap(), PIXELS as u32);
        idx(&folder.join(format!("{split}-images")), &[0x803, count_word, side, side], pixels.collect());
        let label = |image| if image % 4 == 3 { (class(image) + 1) % CLASSES } else { class(image) };
        let labels = (0..count).map(|image| label(image) as u8).collect();
        idx(&folder.join(format!("{split}-labels")), &[0x801, count_word], labels);
    }
    let path = folder.join("data.toml");
    let text = format!(
        "train_images = \"train-images\"\ntrain_labels = \"train-labels\"\n\
         test_images = \"test-images\"\ntest_labels = \"test-labels\"\n\
         classes = {CLASSES}\nclients = {CLIENTS}\nsamples_per_client = {PER_CLIENT}\n\
         partition = {{ kind = \"iid\" }}\neval_examples = {HELD_OUT}\nseed = 5\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn idx(path: &Path, header: &[u32], body: Vec<u8>) {
    let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).chain(body).collect();
    std::fs::write(path, bytes).unwrap();
}

/// A number below `below` that looks random.
fn scatter(i: usize, below: usize) -> usize {
    i * 2_654_435_761 % below
}
