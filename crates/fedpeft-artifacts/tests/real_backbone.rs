//! The artifacts of a real backbone, checked in f64 by the reference evaluator: the prepared graph computes
//! what the export computes, and the gradients are those of the evaluation graph.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::collections::{BTreeSet, HashMap};

use fedpeft_artifacts::{
    ArtifactFolder, BuildError, BuildOptions, FolderError, InputOptions, build,
    manifest::{InputSource, TaskSpec},
};
use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{DType, Dim, Model, Tensor, ValueInfo, opset, surgery};
use fedpeft_passes::{PrepareOptions, prepare};
use fedpeft_peft::Method;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const OUTPUT: &str = "/backbone/layernorm/Add_1_output_0";
const SIZE: usize = 28;

fn options(method: Method) -> BuildOptions {
    BuildOptions::image_classification(fedpeft_testkit::assets().dinov2().unwrap(), OUTPUT, SIZE, 10, method)
}

/// Roughly normal values, as images after normalisation are.
fn images(rng: &mut impl Rng, count: usize) -> Value {
    let len = count * 3 * SIZE * SIZE;
    let values: Vec<f32> = (0..len).map(|_| rng.random_range(-2.0f32..2.0)).collect();
    Value::from_tensor(&Tensor::f32([count, 3, SIZE, SIZE], &values)).unwrap()
}

#[test]
fn the_prepared_graph_computes_what_the_export_computes() {
    let source = Model::load(options(Method::Head).model).unwrap();
    let prepared = prepare(source.clone(), &PrepareOptions::single(OUTPUT, [3, SIZE, SIZE])).unwrap();
    let operators: BTreeSet<&str> = prepared.graph.nodes.iter().map(|node| node.op.as_str()).collect();
    for gone in ["Erf", "Sqrt", "Pow", "Where", "Resize", "Conv", "Cast"] {
        assert!(!operators.contains(gone), "{gone} is still there: {operators:?}");
    }
    assert_eq!(prepared.graph.nodes.iter().filter(|node| node.op == "LayerNormalization").count(), 25);
    assert_eq!(prepared.graph.nodes.iter().filter(|node| node.op == "Gelu").count(), 12);
    let weight = "backbone.encoder.layer.0.attention.attention.key.weight";
    assert!(prepared.parameters.contains(weight), "anonymous weights are named after their place");

    let mut original = source;
    opset::upgrade(&mut original).unwrap();
    surgery::cut(&mut original.graph, OUTPUT).unwrap();
    let name = original.graph.inputs[0].name.clone();
    // The export declares 224 pixels, but computes its shapes in the graph.
    let any = ["N", "C", "H", "W"].map(|symbol| Dim::Symbol(symbol.into())).to_vec();
    original.graph.inputs[0] = ValueInfo::new(name.clone(), DType::F32, any);
    let inputs = HashMap::from([(name, images(&mut ChaCha8Rng::seed_from_u64(1), 2))]);
    let wanted = Interpreter::new(&original).unwrap().run(&inputs).unwrap();
    let model = Model::new(prepared.graph);
    let got = Interpreter::new(&model).unwrap().run(&inputs).unwrap();
    let (wanted, got) = (wanted[OUTPUT].as_float().unwrap(), got[OUTPUT].as_float().unwrap());
    assert_eq!(wanted.shape(), [2, 5, 384]);
    let worst = wanted.iter().zip(got).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0, f64::max);
    // Folded constants (the interpolated positions) are rounded to f32.
    assert!(worst < 1e-5, "features differ by {worst}");
}

/// Gradients of `count` random entries of the adapter of `method`, against central differences of the
/// evaluation graph in f64.
fn check_gradients(method: Method, count: usize, choose: impl Fn(&str) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("artifacts");
    let manifest = build(&options(method), &path).unwrap();
    let folder = ArtifactFolder::open(&path).unwrap();
    folder.verify().unwrap();
    let training = Model::load(folder.file(&manifest.files.training)).unwrap();
    let eval = Model::load(folder.file(&manifest.files.eval)).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut inputs = HashMap::from([
        (manifest.inputs[0].name.clone(), images(&mut rng, 2)),
        ("labels".to_owned(), Value::from_tensor(&Tensor::i64([2], &[3, 8])).unwrap()),
    ]);
    let adapter = folder.initial_adapter().unwrap();
    for (spec, range) in manifest.adapter.ranges() {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| *dim as usize).collect();
        let mut values = adapter[range].to_vec();
        if spec.name.starts_with("head.") {
            // The head begins at zero, where the backbone has no gradient yet.
            values.iter_mut().for_each(|value| *value = rng.random_range(-0.2..0.2));
        }
        inputs.insert(spec.name.clone(), Value::from_tensor(&Tensor::f32(shape, &values)).unwrap());
    }
    let gradients = Interpreter::new(&training).unwrap().run(&inputs).unwrap();
    let evaluated = Interpreter::new(&eval).unwrap();
    let names: Vec<_> = manifest.adapter.tensors().iter().filter(|t| choose(&t.name)).collect();
    for _ in 0..count {
        let spec = names[rng.random_range(0..names.len())];
        let at = rng.random_range(0..spec.values());
        let centre = inputs[&spec.name].as_float().unwrap().clone();
        let mut loss = |step: f64| {
            let mut moved = centre.clone();
            *moved.iter_mut().nth(at).unwrap() += step;
            inputs.insert(spec.name.clone(), Value::Float(moved));
            *evaluated.run(&inputs).unwrap()["loss"].as_float().unwrap().iter().next().unwrap()
        };
        let h = 1e-4;
        let wanted = (loss(h) - loss(-h)) / (2.0 * h);
        inputs.insert(spec.name.clone(), Value::Float(centre));
        let got = *gradients[&format!("{}.grad", spec.name)].as_float().unwrap().iter().nth(at).unwrap();
        let error = (got - wanted).abs();
        assert!(
            error <= 1e-4 * wanted.abs() + 1e-7,
            "{}[{at}]: graph {got}, finite difference {wanted}",
            spec.name
        );
    }
}

#[test]
fn bias_gradients_are_those_of_the_eval_graph() {
    check_gradients(Method::Bias, 24, |_| true);
}

#[test]
fn full_gradients_are_those_of_the_eval_graph() {
    check_gradients(Method::Full, 8, |_| true);
}

/// Positions are interpolated, patches convolved: the two places where `full` passes through an operator that
/// no other method meets.
#[test]
fn embedding_gradients_are_those_of_the_eval_graph() {
    check_gradients(Method::Full, 6, |name| name.contains("embeddings"));
}

#[test]
fn graphs_hold_standard_operators_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("artifacts");
    let manifest = build(&options(Method::Full), &path).unwrap();
    for (file, _) in manifest.all_files().iter().filter(|(file, _)| file.name.ends_with(".onnx")) {
        let model = Model::load_graph(path.join(&file.name)).unwrap();
        assert_eq!(model.opset, 20);
        for node in &model.graph.nodes {
            let body = model.functions.iter().find(|f| f.domain == node.domain && f.name == node.op);
            let standard = match body {
                Some(function) => function.nodes.iter().all(|node| node.domain.is_empty()),
                None => node.domain.is_empty(),
            };
            assert!(standard, "{}: {} is no standard operator", file.name, node.label());
        }
    }
}

#[test]
fn sizes_are_those_of_the_architecture() {
    let dir = tempfile::tempdir().unwrap();
    let manifests = [Method::Head, Method::Bias, Method::Full]
        .map(|m| build(&options(m.clone()), &dir.path().join(m.name())).unwrap());
    let head = 384 * 10 + 10;
    // Per block: query, key, value, projection, two of the MLP, two normalisations; then patches and last norm.
    let biases = 12 * (4 * 384 + 1536 + 384 + 2 * 384) + 2 * 384;
    let backbone = manifests[0].backbone.values as usize;
    assert_eq!(manifests.each_ref().map(|m| m.adapter.values()), [head, head + biases, head + backbone]);
    let blobs = manifests.each_ref().map(|m| m.files.backbone.digest);
    assert!(blobs.iter().all(|digest| *digest == blobs[0]), "one backbone blob serves every method");
    let small = manifests.iter().all(|m| m.files.training.size < 400_000 && m.files.eval.size < 400_000);
    assert!(small, "weights are in the backbone file, not in the graphs");
}

#[test]
fn builds_are_reproducible() {
    let dir = tempfile::tempdir().unwrap();
    let twice = ["a", "b"].map(|name| build(&options(Method::Bias), &dir.path().join(name)).unwrap());
    assert_eq!(twice[0], twice[1]);
}

#[test]
fn bad_options_are_named_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("artifacts");
    let refused = |change: &dyn Fn(&mut BuildOptions), text: &str| {
        let mut options = options(Method::Bias);
        change(&mut options);
        let error = build(&options, &path).unwrap_err().to_string();
        assert!(error.contains(text) && !error.contains('\n'), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{error}");
    };
    refused(&|o| o.task = TaskSpec::classification(0), "classes must be at least 2");
    refused(&|o| o.task = TaskSpec::CausalLm { vocabulary: 50 }, "token ids");
    refused(&|o| o.model = "/nonexistent/model.onnx".into(), "/nonexistent/model.onnx");
    refused(&|o| o.output = "/backbone/layernorm/Add_1_output".into(), OUTPUT);
    refused(&|o| o.inputs[0].shape = vec![3, 13, 13], "enlarge the input");
    refused(&|o| o.inputs[0].name = Some("pixels".into()), "no input \"pixels\"");
    refused(&|o| o.inputs.clear(), "1 to 16 inputs, not 0");
    refused(&|o| o.inputs.push(InputOptions::tokens("ids", InputSource::TokenIds, 4)), "no input \"ids\"");
    let wrong_std = InputSource::Image { mean: vec![0.0; 3], std: vec![1.0, 0.0, 1.0] };
    refused(&move |o| o.inputs[0].source = wrong_std.clone(), "std");
}

#[test]
fn a_changed_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("artifacts");
    let manifest = build(&options(Method::Head), &path).unwrap();
    let folder = ArtifactFolder::open(&path).unwrap();
    let file = folder.file(&manifest.files.checkpoint);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(matches!(folder.verify(), Err(FolderError::Digest { .. })));
}

#[test]
fn a_foreign_folder_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("precious.txt"), "mine").unwrap();
    assert!(matches!(build(&options(Method::Head), dir.path()), Err(BuildError::Occupied(_))));
    assert!(dir.path().join("precious.txt").exists());
}
