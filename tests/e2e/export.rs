//! From a run to a model that anybody's ONNX Runtime runs.

use std::{collections::BTreeMap, fs, path::Path, sync::OnceLock};

use fedpeft_artifacts::ArtifactFolder;
use fedpeft_codec::Layout;
use fedpeft_export::{read_adapter, read_trained};
use fedpeft_testkit::{NatsServer, assets};
use ort::{
    environment::Environment,
    session::{Session, SessionInputValue},
    value::Tensor,
};
use serde_json::{Value, json};

use crate::{
    services::{Services, json_of, on, publish_method},
    support::{Workspace, fedpeft, succeed, until},
};

const IMAGES: usize = 4;

/// Images of 28 pixels that are no two alike.
fn images() -> (Vec<usize>, Vec<f32>) {
    let value = |at: usize| ((at * 7919 % 4093) as f32 / 2047.0 - 1.0) * (1.0 + at as f32 / 7000.0);
    (vec![IMAGES, 3, 28, 28], (0..IMAGES * 3 * 28 * 28).map(value).collect())
}

/// A process has one.
fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let library = assets().ort_lib().unwrap();
        ort::init_from(library).unwrap().with_telemetry(false).build().unwrap()
    })
}

/// The logits of `model`, which reads `inputs` and labels of `i64`, if it wants them.
fn logits(model: &Path, inputs: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Vec<f32> {
    let mut builder = Session::builder(environment()).unwrap().with_intra_threads(1).unwrap();
    let mut session = builder.commit_from_file(model).unwrap();
    let names: Vec<String> = session.inputs().iter().map(|input| input.name().to_owned()).collect();
    let feeds = names.into_iter().map(|name| {
        let value: SessionInputValue<'_> = match inputs.get(&name) {
            Some(tensor) => Tensor::from_array(tensor.clone()).unwrap().into(),
            None => {
                assert_eq!(name, "labels");
                Tensor::from_array((vec![IMAGES], vec![0i64; IMAGES])).unwrap().into()
            }
        };
        (name, value)
    });
    let outputs = session.run(feeds.collect::<Vec<_>>()).unwrap();
    outputs["logits"].try_extract_tensor::<f32>().unwrap().1.to_vec()
}

/// The exported model in `folder` decides as the evaluation graph of `artifacts` does.
pub fn classifies_alike(artifacts: &ArtifactFolder, folder: &Path) {
    let manifest = artifacts.manifest();
    let batch = BTreeMap::from([(manifest.inputs[0].name.clone(), images())]);
    let mut inputs = batch.clone();
    let (values, residual) = read_trained(&folder.join("adapter.safetensors"), manifest).unwrap();
    let mut fill = |layout: &Layout, values: &[f32]| {
        for (spec, range) in layout.ranges() {
            let shape = spec.shape.iter().map(|dim| *dim as usize).collect();
            inputs.insert(spec.name.clone(), (shape, values[range].to_vec()));
        }
    };
    fill(&manifest.adapter, &values);
    if let Some(layout) = manifest.residual().unwrap() {
        fill(&layout, &residual.unwrap());
    }
    let wanted = logits(&artifacts.file(&manifest.files.eval), &inputs);
    let found = logits(&folder.join("model.onnx"), &batch);
    let largest = wanted.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
    let differs = found.iter().zip(&wanted).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(largest > 0.0 && differs <= 1e-5 * largest, "logits up to {largest} differ by {differs}");
    let decided = |logits: &[f32]| -> Vec<usize> {
        let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
        logits.chunks(10).map(best).collect()
    };
    assert_eq!(decided(&found), decided(&wanted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_becomes_a_model() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let _services = Services::start(&nats, &workspace);
    publish_method(&nats, &workspace, "lora");
    until(|| on(&nats, &["run", "list"]).output().unwrap().status.success().then_some(()));
    let config = workspace.path("run.toml");
    succeed(on(&nats, &["run", "submit", config.to_str().unwrap(), "--name", "first", "--watch"]));

    let path = |name: &str| workspace.path(name).to_str().unwrap().to_owned();
    let (last, early) = (path("last"), path("early"));
    let summary = json_of(on(&nats, &["export", "--run", "first", "-o", &last, "--json"]));
    assert_eq!((&summary["method"], &summary["round"]), (&json!("lora"), &json!(3)));
    let files: Vec<&str> =
        summary["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    for name in ["model.onnx", "adapter.safetensors", "peft/adapter_config.json", "peft/head.safetensors"] {
        assert!(files.contains(&name), "{name} is not in {files:?}");
    }
    let artifacts = ArtifactFolder::open(path("vit")).unwrap();
    classifies_alike(&artifacts, Path::new(&last));

    let formats = "onnx,safetensors";
    succeed(on(&nats, &["export", "--run", "first", "--round", "1", "-o", &early, "--format", formats]));
    classifies_alike(&artifacts, Path::new(&early));
    let read = |folder: &str, file: &str| fs::read(Path::new(folder).join(file)).unwrap();
    assert_ne!(read(&early, "adapter.safetensors"), read(&last, "adapter.safetensors"));
    assert!(!Path::new(&early).join("peft").exists());

    // The same from what is on the disk, without a broker.
    let again = path("again");
    let mut command = fedpeft();
    command.args(["export", "--artifacts", &path("vit"), "-o", &again]);
    command.arg("--checkpoint").arg(Path::new(&last).join("adapter.safetensors"));
    succeed(command);
    for file in files.iter().filter(|file| **file != "adapter.safetensors") {
        assert!(read(&again, file) == read(&last, file), "{file} is another one");
    }
    // The entries of its metadata have no order.
    let values = |folder: &str| {
        let layout = &artifacts.manifest().adapter;
        read_adapter(&Path::new(folder).join("adapter.safetensors"), layout).unwrap()
    };
    assert_eq!(values(&again), values(&last));

    let cases: [(&[&str], &str); 3] = [
        (&["--run", "nothing", "-o", "x"], "there is no run nothing"),
        (&["--run", "first", "--round", "9", "-o", "x"], "rounds 1 to 3, not 9"),
        (&["--run", "first", "-o", &last], "is not empty"),
    ];
    for (arguments, told) in cases {
        let output = on(&nats, &[&["export"], arguments].concat()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && error.contains(told), "{arguments:?}: {error}");
    }
}

#[test]
fn adapters_of_other_artifacts_are_not_exported() {
    let workspace = Workspace::new();
    let model = assets().dinov2().unwrap();
    for method in ["head", "bias"] {
        let mut build = fedpeft();
        build.args(["artifacts", "build", "--model", model.to_str().unwrap(), "--input-size", "28"]);
        build.args(["--output", "/backbone/layernorm/Add_1_output_0", "--classes", "10", "--method", method]);
        build.arg("-o").arg(workspace.path(method));
        succeed(build);
    }
    let export = |checkpoint: &str, options: &[&str]| {
        let mut command = fedpeft();
        command
            .arg("export")
            .arg("--artifacts")
            .arg(workspace.path("head"))
            .arg("-o")
            .arg(workspace.path("out"));
        command
            .arg("--checkpoint")
            .arg(workspace.path(checkpoint).join("checkpoint.safetensors"))
            .args(options);
        command
    };
    let told = |mut command: std::process::Command| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = told(export("bias", &[]));
    assert!(error.contains("is not trained by these artifacts") && error.lines().count() == 1, "{error}");
    let error = told(export("nowhere", &[]));
    assert!(error.contains("nowhere/checkpoint.safetensors"), "{error}");
    let error = told(export("head", &["--format", "peft"]));
    assert!(error.contains("HF peft has no head"), "{error}");
    assert!(!workspace.path("out").exists());
    let summary: Value = serde_json::from_str(&succeed(export("head", &["--json"]))).unwrap();
    assert_eq!(summary["skipped"][0]["format"], "peft");
}
