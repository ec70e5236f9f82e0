//! Bad input: one clear line, and an exit code that is not zero.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::Path,
};

use assert_cmd::assert::OutputAssertExt as _;
use fedpeft_onnx::{DType, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_testkit::assets;

use crate::support::{Workspace, fedpeft, succeed, text};

/// The error line of a command that must fail, without the word before it.
fn refused(mut command: std::process::Command) -> String {
    let assert = command.assert().code(1);
    let told = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "not one line: {}", text(assert.get_output()));
    errors[0].trim_start_matches("error: ").to_owned()
}

/// `fedpeft artifacts build` with one option replaced.
fn build(workspace: &Workspace, option: &str, value: &str) -> std::process::Command {
    let model = assets().dinov2().unwrap();
    let mut options = [
        ("--model", model.to_str().unwrap()),
        ("--output", "/backbone/layernorm/Add_1_output_0"),
        ("--input-size", "28"),
        ("--classes", "10"),
        ("--method", "bias"),
    ];
    options.iter_mut().filter(|(name, _)| *name == option).for_each(|(_, old)| *old = value);
    let mut command = fedpeft();
    command.args(["artifacts", "build"]).args(options.iter().flat_map(|(name, value)| [name, value]));
    command.arg("-o").arg(workspace.path("built"));
    command
}

#[test]
fn models_that_cannot_be_built_are_explained() {
    let workspace = Workspace::new();
    let corrupt = workspace.path("corrupt.onnx");
    fs::write(&corrupt, [0xff; 1000]).unwrap();
    let cases = [
        ("--model", "/nowhere/m.onnx", "/nowhere/m.onnx"),
        ("--model", corrupt.to_str().unwrap(), "corrupt.onnx"),
        ("--classes", "0", "classes must be at least 2 and at most 1048576, not 0"),
        ("--output", "no_such_value", "no_such_value"),
        ("--input-size", "0", "0"),
    ];
    for (option, value, told) in cases {
        let error = refused(build(&workspace, option, value));
        assert!(error.contains(told), "{option} {value}: {error}");
        assert!(!workspace.path("built").exists(), "{option} {value} left something behind");
    }
}

/// A model whose features pass an operator that has no gradient.
fn model_with_floor(path: &Path) {
    let values: Vec<f32> = (0..3 * 28 * 28 * 8).map(|index| (index % 7) as f32 * 0.01).collect();
    let shape = [vec![Dim::Symbol("N".into())], Dim::fixed(&[3, 28, 28])].concat();
    let graph = Graph {
        name: "floor".into(),
        nodes: vec![
            Node::new("Flatten", &["image"], &["flat"]),
            Node::new("MatMul", &["flat", "weight"], &["product"]),
            Node::new("Floor", &["product"], &["features"]).named("/encoder/Floor"),
        ],
        inputs: vec![ValueInfo::new("image", DType::F32, shape)],
        outputs: vec![ValueInfo { name: "features".into(), dtype: DType::F32, shape: None }],
        initializers: [("weight".to_owned(), Tensor::f32([3 * 28 * 28, 8], &values))].into(),
    };
    Model::new(graph).save(path).unwrap();
}

#[test]
fn an_operator_without_a_gradient_is_named() {
    let workspace = Workspace::new();
    let model = workspace.path("floor.onnx");
    model_with_floor(&model);
    let command = |method: &str| {
        let mut command = fedpeft();
        command.args(["artifacts", "build", "--model", model.to_str().unwrap(), "--output", "features"]);
        command.args(["--input-size", "28", "--classes", "3", "--method", method]);
        command.arg("-o").arg(workspace.path(method));
        command
    };
    let error = refused(command("full"));
    assert!(error.contains("Floor") && error.contains("/encoder/Floor"), "{error}");
    // The head lies behind it and needs no gradient of it.
    succeed(command("head"));
}

#[test]
fn an_unknown_method_is_answered_with_the_known_ones() {
    let workspace = Workspace::new();
    // clap checks it; its usage errors have exit code 2.
    for mut command in [workspace.simulate(&["--method", "lora9"]), build(&workspace, "--method", "lora9")] {
        let assert = command.assert().code(2);
        let told = text(assert.get_output());
        assert!(told.contains("lora9") && told.contains("head, bias, layernorm, full, lora, "), "{told}");
    }
}

#[test]
fn numbers_that_make_no_sense_are_named() {
    let workspace = Workspace::new();
    let cases: [(&[&str], &str); 9] = [
        (&["--alpha", "0"], "alpha"),
        (&["--alpha", "-0.5"], "alpha"),
        (&["--cohort", "5"], "the cohort of 5 is larger than the 4 clients"),
        (&["--classes", "0"], "classes must be at least 1, not 0"),
        (&["--clients", "0"], "clients must be at least 1, not 0"),
        (&["--rounds", "0"], "rounds must be at least 1, not 0"),
        (&["--lr", "-1"], "learning_rate must be greater than 0"),
        (&["--quorum", "5"], "more than the cohort"),
        (&["--momentum", "0.9"], "--optimizer sgd"),
    ];
    for (options, told) in cases {
        let error = refused(workspace.simulate(options));
        assert!(error.contains(told), "{options:?}: {error}");
    }
}

#[test]
fn configuration_mistakes_are_named_with_their_file() {
    let workspace = Workspace::new();
    let cases = [
        ("[run]\nrounds = \n", "run.toml line 2"),
        ("[run]\nrouds = 3\n[model]\nname = 'm'", "rouds"),
        ("[data]\npartition = { kind = 'sorted' }\n", "sorted"),
        ("[model]\nonnx = 'm.onnx'\n", "output is missing"),
    ];
    for (config, told) in cases {
        fs::write(workspace.path("run.toml"), config).unwrap();
        let error = refused(workspace.simulate(&[]));
        assert!(error.contains("run.toml") && error.contains(told), "{error}");
    }
    fs::remove_file(workspace.path("run.toml")).unwrap();
    assert!(refused(workspace.simulate(&[])).contains("run.toml cannot be read"));
}

#[test]
fn libraries_and_programs_that_are_not_there_are_named() {
    let workspace = Workspace::new();
    let error = refused(workspace.simulate(&["--ort-lib", "/nowhere/libonnxruntime.so"]));
    assert!(error.contains("/nowhere/libonnxruntime.so") && error.contains("--ort-lib"), "{error}");
    let error = refused(workspace.simulate(&["--nats-server-bin", "/nowhere/nats-server"]));
    assert!(error.contains("/nowhere/nats-server"), "{error}");
    // A file that is no library is found out by the worker, which says so through its log.
    let text = workspace.path("text.so");
    fs::write(&text, "not a library").unwrap();
    let error = refused(workspace.simulate(&["--ort-lib", text.to_str().unwrap()]));
    assert!(error.contains("text.so") && error.contains("its log is"), "{error}");
}

#[test]
fn a_broker_that_does_not_answer_is_named() {
    let address = "nats://127.0.0.1:1";
    for arguments in [
        &["run", "list"][..],
        &["run", "watch", "r"],
        &["run", "cancel", "r"],
        &["models", "list"],
        &["models", "pull", "m", "-o", "/nowhere/m"],
    ] {
        let mut command = fedpeft();
        command.args(arguments).args(["--server", address]);
        let error = refused(command);
        assert!(error.contains(address) && error.contains("--server"), "{arguments:?}: {error}");
    }
}

#[test]
fn damaged_artifacts_are_not_used() {
    let workspace = Workspace::new();
    succeed(build(&workspace, "--method", "head"));
    let folder = workspace.path("built");
    let inspect = |options: &[&str]| {
        let mut command = fedpeft();
        command.args(["artifacts", "inspect"]).arg(&folder).args(options);
        command
    };
    let table = succeed(inspect(&[]));
    for told in ["head.weight", "384 x 10", "3,850"] {
        assert!(table.contains(told), "{told} is not in {table}");
    }
    let file = folder.join("checkpoint.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = refused(inspect(&[]));
    assert!(error.contains("checkpoint.safetensors has digest"), "{error}");
    succeed(inspect(&["--no-verify"]));

    let config = format!("[run]\nrounds = 1\ncohort = 1\n[model]\nartifacts = {folder:?}\n");
    fs::write(workspace.path("run.toml"), config).unwrap();
    let error = refused(workspace.simulate(&[]));
    assert!(error.contains("checkpoint.safetensors has digest"), "{error}");
}

#[test]
fn a_truncated_image_file_is_named() {
    let workspace = Workspace::new();
    let data = workspace.path("data");
    copy_truncated(&assets().fashion_mnist().unwrap(), &data, "train-images-idx3-ubyte.gz");
    let folder = data.to_str().unwrap();
    let mut partition = fedpeft();
    partition.args(["data", "partition", "--data-dir", folder]);
    for command in [partition, workspace.simulate(&["--data-dir", folder])] {
        let error = refused(command);
        assert!(error.contains("train-images-idx3-ubyte.gz"), "{error}");
    }
}

fn copy_truncated(from: &Path, to: &Path, truncated: &str) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let mut bytes = Vec::new();
        fs::File::open(entry.path()).unwrap().read_to_end(&mut bytes).unwrap();
        if entry.file_name() == truncated {
            bytes.truncate(bytes.len() / 2);
        }
        fs::File::create(to.join(entry.file_name())).unwrap().write_all(&bytes).unwrap();
    }
}

#[test]
fn a_privacy_budget_gives_its_noise_and_the_noise_its_budget() {
    let privacy = |arguments: &str| {
        let mut command = fedpeft();
        command.arg("privacy").args(arguments.split(' '));
        command
    };
    let rows = |arguments: &str| -> Vec<serde_json::Value> {
        serde_json::from_str(&succeed(privacy(&format!("{arguments} --json")))).unwrap()
    };
    let rounds = "--clients 64 --cohort 8 --rounds 50 --delta 1e-3";
    let noise = rows(&format!("noise {rounds} --epsilon 5"));
    assert_eq!(rows(&format!("noise {rounds} --epsilon 5 --sampling fixed-size")).len(), 2);
    for (row, accountant) in noise.iter().zip(["prv", "rdp"]) {
        assert_eq!((row["accountant"].as_str(), row["rate"].as_f64()), (Some(accountant), Some(0.125)));
        let multiplier = row["noise_multiplier"].as_f64().unwrap();
        let spent = rows(&format!("spent {rounds} --noise-multiplier {multiplier}"));
        let spent = spent.iter().find(|row| row["accountant"] == accountant).unwrap();
        let epsilon = spent["epsilon"].as_f64().unwrap();
        assert!((4.9..=5.0).contains(&epsilon), "{accountant}: {epsilon}");
    }
    let error = refused(privacy("noise --clients 8 --cohort 9 --rounds 50 --epsilon 5 --delta 1e-3"));
    assert!(error.contains("sampling rate is 1.125"), "{error}");
    let error = refused(privacy("noise --rate 0.1 --rounds 50 --epsilon 5 --delta 1.5"));
    assert!(error.contains("delta is 1.5"), "{error}");
}

#[test]
fn a_device_that_is_not_there_is_said_to_be_so() {
    let workspace = Workspace::new();
    let error = refused(workspace.simulate(&["--device", "gpu"]));
    assert!(error.contains("gpu"), "{error}");
}

#[test]
fn every_command_explains_itself() {
    let help = |arguments: &[&str]| {
        let mut command = fedpeft();
        command.args(arguments).arg("--help");
        succeed(command)
    };
    for arguments in [
        &[][..],
        &["simulate"],
        &["completions"],
        &["export"],
        &["artifacts", "build"],
        &["artifacts", "inspect"],
        &["data", "partition"],
        &["models", "push"],
        &["models", "list"],
        &["models", "pull"],
        &["privacy", "noise"],
        &["privacy", "spent"],
        &["run", "submit"],
        &["run", "list"],
        &["run", "get"],
        &["run", "watch"],
        &["run", "cancel"],
        &["run", "resume"],
        &["run", "report"],
    ] {
        let told = help(arguments);
        assert!(told.contains("Example") && told.contains("fedpeft "), "{arguments:?}: {told}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let mut command = fedpeft();
        command.args(["completions", shell]);
        assert!(succeed(command).contains("simulate"));
    }
}
