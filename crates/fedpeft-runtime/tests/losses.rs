//! Loss, gradients and counts of every task on ONNX Runtime are PyTorch's, see `tests/golden/losses.py`.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::path::Path;

use fedpeft_artifacts::{
    ArtifactFolder, BuildOptions, InputOptions, build,
    manifest::{ElementType, InputSource, TaskSpec},
};
use fedpeft_onnx::{DType, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_peft::{Method, Pooling};
use fedpeft_protocol::run::{OptimizerSpec, TrainingSpec};
use fedpeft_runtime::{Column, Device, InMemory, Kernels, Runtime, RuntimeError, SessionOptions, Trainer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    task: TaskSpec,
    labels: Vec<f64>,
    weight: Vec<Vec<f32>>,
    loss: f64,
    weight_grad: Vec<Vec<f64>>,
    correct: u64,
    count: u64,
    #[serde(flatten)]
    given: Given,
}

/// What the features are made of.
#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Features { features: Vec<Vec<f32>> },
    Tokens { tokens: Vec<Vec<Vec<f32>>>, mask: Vec<Vec<i64>> },
    Ids { ids: Vec<Vec<i64>>, table: Vec<Vec<f32>> },
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../../tests/golden/losses.json")).unwrap()
}

fn matrix(rows: &[Vec<f32>]) -> Tensor {
    Tensor::f32([rows.len(), rows[0].len()], &rows.concat())
}

/// An export that computes the features of a case from its inputs, and `weight` behind them where it is the
/// model's own.
fn export(case: &Case, own_head: bool, path: &Path) -> (Vec<InputOptions>, Vec<Column>) {
    let mut graph = Graph { name: "case".into(), ..Graph::default() };
    graph.outputs.push(ValueInfo { name: "y".into(), dtype: DType::F32, shape: None });
    let mut input = |name: &str, shape: &[usize], source: InputSource| {
        let dtype = if source == InputSource::Values { ElementType::F32 } else { ElementType::I64 };
        let dims = [vec![Dim::Symbol("N".into())], Dim::fixed(shape)].concat();
        graph.inputs.push(ValueInfo::new(name, dtype.dtype(), dims));
        InputOptions { name: Some(name.into()), dtype, shape: shape.to_vec(), source }
    };
    let (inputs, columns, constants, mut nodes) = match &case.given {
        Given::Features { features } => {
            let width = features[0].len();
            let inputs = vec![input("x", &[width], InputSource::Values)];
            let constants = vec![("one", Tensor::f32([width], &vec![1.0; width]))];
            let nodes = vec![Node::new("Mul", &["x", "one"], &["features"])];
            (inputs, vec![features.concat().into()], constants, nodes)
        }
        Given::Tokens { tokens, mask } => {
            let (length, width) = (mask[0].len(), tokens[0][0].len());
            // Declared in the other order than the model's.
            let x = input("x", &[length, width], InputSource::Values);
            let inputs = vec![input("mask", &[length], InputSource::AttentionMask), x];
            let columns = vec![mask.concat().into(), tokens.concat().concat().into()];
            let constants = vec![
                ("axis", Tensor::i64([1], &[2])),
                ("zero", Tensor::i64([], &[0])),
                ("wild", Tensor::f32([width], &vec![100.0; width])),
            ];
            // What padding holds must not matter.
            let nodes = vec![
                Node::new("Unsqueeze", &["mask", "axis"], &["column"]),
                Node::new("Equal", &["column", "zero"], &["padding"]),
                Node::new("Where", &["padding", "wild", "x"], &["features"]),
            ];
            (inputs, columns, constants, nodes)
        }
        Given::Ids { ids, table } => {
            let inputs = vec![input("ids", &[ids[0].len()], InputSource::TokenIds)];
            let nodes = vec![Node::new("Gather", &["table", "ids"], &["features"]).with("axis", 0i64)];
            (inputs, vec![ids.concat().into()], vec![("table", matrix(table))], nodes)
        }
    };
    nodes.push(if own_head {
        graph.initializers.insert("weight".into(), matrix(&case.weight));
        Node::new("MatMul", &["features", "weight"], &["y"])
    } else {
        Node::new("Identity", &["features"], &["y"])
    });
    graph.nodes = nodes;
    graph.initializers.extend(constants.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)));
    Model::new(graph).save(path).unwrap();
    (inputs, columns)
}

fn runtime() -> Runtime {
    Runtime::load(Some(&fedpeft_testkit::assets().ort_lib().unwrap())).unwrap()
}

/// A trainer of the case with its weight set, its examples, and the place of the weight in the adapter.
fn ready(case: &Case, own_head: bool, folder: &Path) -> (Trainer, InMemory, std::ops::Range<usize>) {
    let model = folder.join("model.onnx");
    let (inputs, columns) = export(case, own_head, &model);
    let options = BuildOptions {
        model,
        output: "y".into(),
        inputs,
        text: None,
        task: case.task.clone(),
        method: if own_head { Method::Full } else { Method::Head }.into(),
        seed: 0,
        pooling: Pooling::Mean,
        storage: Default::default(),
        dp_sgd: false,
    };
    let path = folder.join("artifacts");
    build(&options, &path).unwrap();
    let artifacts = ArtifactFolder::open(path).unwrap();
    let weight = if own_head { "weight" } else { "head.weight" };
    let (_, range) = artifacts.manifest().adapter.ranges().find(|(spec, _)| spec.name == weight).unwrap();
    let mut adapter = artifacts.initial_adapter().unwrap();
    adapter[range.clone()].copy_from_slice(&case.weight.concat());
    let labels: Column = match case.task.label_type() {
        ElementType::F32 => case.labels.iter().map(|label| *label as f32).collect::<Vec<_>>().into(),
        ElementType::I64 => case.labels.iter().map(|label| *label as i64).collect::<Vec<_>>().into(),
    };
    let count = match &case.given {
        Given::Features { features } => features.len(),
        Given::Tokens { mask, .. } => mask.len(),
        Given::Ids { ids, .. } => ids.len(),
    };
    let options =
        SessionOptions { device: Device::Cpu, threads: 1, kernels: Kernels::Fused, ..Default::default() };
    let mut trainer = Trainer::new(&runtime(), artifacts, options).unwrap();
    trainer.set_adapter(&adapter).unwrap();
    (trainer, InMemory::with_columns(count, columns, labels).unwrap(), range)
}

fn check(case: &Case, own_head: bool) {
    let folder = tempfile::tempdir().unwrap();
    let (mut trainer, examples, range) = ready(case, own_head, folder.path());
    let all: Vec<usize> = (0..fedpeft_runtime::Examples::len(&examples)).collect();
    let name = &case.name;

    let evaluated = trainer.evaluate(&examples, &mut || true).unwrap();
    assert!(
        (evaluated.loss - case.loss).abs() < 1e-6,
        "{name}: loss {} is not {}",
        evaluated.loss,
        case.loss
    );
    let accuracy = (case.count > 0).then(|| case.correct as f64 / case.count as f64);
    assert_eq!(evaluated.accuracy, accuracy, "{name}");

    let mut start = Vec::new();
    trainer.adapter_into(&mut start).unwrap();
    // The whole batch at once, and example by example.
    for accumulate in [1, TrainingSpec::default().batch_size] {
        let plain = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        let training =
            TrainingSpec { optimizer: plain, learning_rate: 1.0, accumulate, ..TrainingSpec::default() };
        trainer.set_adapter(&start).unwrap();
        let mut optimizer = trainer.optimizer(&training).unwrap();
        let stepped = trainer.train_step(&mut optimizer, &examples, &all).unwrap();
        assert_eq!((stepped.correct, stepped.count), (case.correct, case.count), "{name}");
        assert!((f64::from(stepped.loss) - case.loss).abs() < 1e-6, "{name}");
        let mut after = Vec::new();
        trainer.adapter_into(&mut after).unwrap();
        let (before, wanted) = (case.weight.concat(), case.weight_grad.concat());
        for (i, (before, after)) in before.iter().zip(&after[range.clone()]).enumerate() {
            let got = f64::from(before - after);
            assert!((got - wanted[i]).abs() < 1e-6, "{name}: gradient {i} is {got}, not {}", wanted[i]);
        }
    }
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    for case in cases() {
        check(&case, false);
    }
}

#[test]
fn a_language_model_with_its_own_head_gets_no_other() {
    for case in cases().iter().filter(|case| matches!(case.task, TaskSpec::CausalLm { .. })) {
        check(case, true);
        let folder = tempfile::tempdir().unwrap();
        let (trainer, ..) = ready(case, true, folder.path());
        let adapter = &trainer.artifacts().manifest().adapter;
        assert!(adapter.tensors().iter().all(|tensor| !tensor.name.starts_with("head.")));
    }
}

#[test]
fn what_the_model_cannot_learn_is_named_before_it_runs() {
    let refused = |name: &str, change: fn(&mut Case), expected: &str| {
        let mut case = cases().into_iter().find(|case| case.name.starts_with(name)).unwrap();
        change(&mut case);
        let folder = tempfile::tempdir().unwrap();
        let (mut trainer, examples, _) = ready(&case, false, folder.path());
        for error in [
            trainer.gradients(&examples, &[0, 1]).unwrap_err(),
            trainer.evaluate(&examples, &mut || true).unwrap_err(),
        ] {
            assert!(matches!(error, RuntimeError::Label { .. } | RuntimeError::Token { .. }), "{error}");
            assert!(error.to_string().contains(expected) && !error.to_string().contains('\n'), "{error}");
        }
    };
    refused(
        "classification",
        |case| case.labels[1] = 4.0,
        "example 1 has the label 4, but the model learns a class from 0 to 3",
    );
    refused("classification", |case| case.labels[0] = -1.0, "label -1");
    refused(
        "multi-label",
        |case| case.labels[5] = 2.0,
        "example 1 has the label 2, but the model learns a number from 0 to 1",
    );
    refused("regression", |case| case.labels[3] = f64::NAN, "example 1 has the label NaN");
    refused("causal-lm", |case| case.labels[6] = -1.0, "a token from 0 to 6, or -100");
    let unknown_token = |case: &mut Case| {
        if let Given::Ids { ids, .. } = &mut case.given {
            ids[1][2] = 7;
        }
    };
    refused("causal-lm", unknown_token, "example 1 has the token id 7, but the model has 0 to 6");
}

#[test]
fn an_evaluation_in_parts_is_a_mean_over_tokens() {
    let case = || cases().into_iter().find(|case| case.name == "causal-lm, some ignored").unwrap();
    let loss = |labels: &[f64], examples: usize| {
        let mut case = Case { labels: labels.to_vec(), ..case() };
        if let Given::Ids { ids, .. } = &mut case.given {
            *ids = ids.iter().cycle().take(examples).cloned().collect();
        }
        let folder = tempfile::tempdir().unwrap();
        let (mut trainer, examples, _) = ready(&case, false, folder.path());
        trainer.evaluate(&examples, &mut || true).unwrap().loss
    };
    // The same three examples, first with few tokens scored, then with all: more than fit one batch.
    let few = case().labels;
    let all: Vec<f64> = match case().given {
        Given::Ids { ids, .. } => ids.concat().iter().map(|id| *id as f64).collect(),
        _ => unreachable!(),
    };
    let (few_scored, all_scored) = (case().count as f64, 12.0);
    let wanted = (loss(&few, 3) * few_scored + loss(&all, 3) * all_scored) / (few_scored + all_scored);
    let got = loss(&[few.repeat(32), all.repeat(32)].concat(), 192);
    assert!((got - wanted).abs() < 1e-6, "{got} is not {wanted}");
}
