//! Every method trains on the real ONNX Runtime, with our kernels and without.
#![allow(clippy::unwrap_used, reason = "tests may")]

use std::path::{Path, PathBuf};

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, build};
use fedpeft_codec::{FACTOR_A, FACTOR_B, Layout, LowRank};
use fedpeft_peft::{Lora, Method, Peft};
use fedpeft_protocol::run::{DpSgdSpec, ExampleSampling, OptimizerSpec, TrainingSpec};
use fedpeft_runtime::{
    Device, Examples, InMemory, Kernels, LocalTraining, OrderSeed, Runtime, SessionOptions, Shapes, Trainer,
};

const CLASSES: usize = 3;
const SIDE: usize = 32;

/// A small ViT with a packed projection.
fn options(method: Peft) -> BuildOptions {
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/exports/vit-sdpa.onnx");
    BuildOptions::image_classification(model, "tokens", SIDE, CLASSES as u32, method)
}

fn artifacts(method: Peft, path: &Path) -> ArtifactFolder {
    build(&options(method), path).unwrap();
    ArtifactFolder::open(path).unwrap()
}

/// Images whose brightness tells their class, in noise.
fn examples(count: usize) -> InMemory {
    let noise = |i: usize| (i * 2_654_435_761 % 1_000) as f32 / 500.0 - 1.0;
    let pixels = 3 * SIDE * SIDE;
    let value = |i: usize| noise(i) + (i / pixels % CLASSES) as f32;
    let labels = (0..count).map(|i| (i % CLASSES) as i64).collect();
    InMemory::new((0..count * pixels).map(value).collect(), labels).unwrap()
}

fn trainer(folder: &ArtifactFolder, kernels: Kernels) -> Trainer {
    trainer_on(Device::Cpu, folder, kernels)
}

fn trainer_on(device: Device, folder: &ArtifactFolder, kernels: Kernels) -> Trainer {
    trainer_with(SessionOptions { device, threads: 1, kernels, ..Default::default() }, folder)
}

fn trainer_with(options: SessionOptions, folder: &ArtifactFolder) -> Trainer {
    let mut trainer = Trainer::new(&Runtime::load(None).unwrap(), folder.clone(), options).unwrap();
    trainer.set_adapter(&folder.initial_adapter().unwrap()).unwrap();
    trainer
}

/// Not Adam, which makes steps of equal size from gradients that are rounding: those of a key's bias.
fn spec() -> TrainingSpec {
    let optimizer = OptimizerSpec::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    TrainingSpec { local_epochs: 6, batch_size: 8, learning_rate: 0.02, optimizer, ..Default::default() }
}

fn train(trainer: &mut Trainer, examples: &InMemory) -> (f64, Vec<f32>) {
    train_as(&spec(), None, trainer, examples)
}

fn train_as(
    spec: &TrainingSpec,
    correction: Option<&[f32]>,
    trainer: &mut Trainer,
    examples: &dyn Examples,
) -> (f64, Vec<f32>) {
    let seed = OrderSeed { run: 1, round: 1, client: "c" };
    let trained =
        trainer.train(LocalTraining { spec, seed, rounds: 1, correction }, examples, &mut || true).unwrap();
    let mut adapter = Vec::new();
    trainer.adapter_into(&mut adapter).unwrap();
    (trained.loss, adapter)
}

/// The largest difference of two adapters.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Drops of what all tokens have, and of what the class token alone has.
fn dropping() -> Peft {
    let targets = ["query", "value", "down"].map(str::to_owned).into();
    Method::Lora(Lora { rank: 4, dropout: 0.3, targets, ..Lora::default() }).into()
}

fn frozen() -> Peft {
    Method::Lora(Lora { rank: 4, freeze_a: true, ..Lora::default() }).into()
}

fn exact() -> Peft {
    Method::Lora(Lora { rank: 4, residual: true, ..Lora::default() }).into()
}

fn methods() -> impl Iterator<Item = Peft> {
    let named = [
        "head",
        "bias",
        "layernorm",
        "full",
        "lora",
        "dora",
        "adapter",
        "prompt",
        "prefix",
        "ia3",
        "lora+bias",
    ];
    named.map(|name| name.parse::<Peft>().unwrap()).into_iter().chain([dropping(), frozen(), exact()])
}

#[test]
fn every_method_learns_and_kernels_change_nothing() {
    let examples = examples(24);
    for method in methods() {
        let directory = tempfile::tempdir().unwrap();
        let folder = artifacts(method.clone(), &directory.path().join("artifacts"));
        let results = [Kernels::Fused, Kernels::Portable].map(|kernels| {
            let mut trainer = trainer(&folder, kernels);
            let before = trainer.evaluate(&examples, &mut || true).unwrap();
            // A head of zeros: the logarithm of the number of classes.
            assert!((before.loss - (CLASSES as f64).ln()).abs() < 1e-6, "{method}: {}", before.loss);
            let (_, adapter) = train(&mut trainer, &examples);
            let after = trainer.evaluate(&examples, &mut || true).unwrap();
            assert!(after.loss < 0.8 * before.loss, "{method}: {} after {}", after.loss, before.loss);
            adapter
        });
        let difference = difference(&results[0], &results[1]);
        assert!(difference < 2e-3, "{method}: kernels differ by {difference}");
    }
}

/// LoRA of this rank on ViTs that pack their projections, and that do not.
fn exact_options(export: &str, rank: u32, residual: bool) -> BuildOptions {
    let targets = ["query", "value", "down"].map(str::to_owned).into();
    let method =
        Method::Lora(Lora { rank, alpha: 2.0 * f64::from(rank), residual, targets, ..Lora::default() });
    let model =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/golden/exports/{export}.onnx"));
    BuildOptions { model, dp_sgd: true, ..options(method.into()) }
}

/// `sum over k >= from of B[., k] A[k, .]` for every pair of factors, in the order of the residuals.
fn products_from(from: usize, layout: &Layout, values: &[f32]) -> Vec<f32> {
    let tensor = |name: String| layout.ranges().find(|(spec, _)| spec.name == name).unwrap();
    let modules = layout.tensors().iter().filter_map(|spec| spec.name.strip_suffix(FACTOR_A));
    let product = |module: &str| -> Vec<f32> {
        let (a_spec, a) = tensor(format!("{module}{FACTOR_A}"));
        let (b_spec, b) = tensor(format!("{module}{FACTOR_B}"));
        let [rank, inputs, outputs] =
            [a_spec.shape[0], a_spec.shape[1], b_spec.shape[0]].map(|dim| dim as usize);
        let (a, b) = (&values[a], &values[b]);
        let entry = |row: usize, column: usize| -> f32 {
            (from..rank).map(|at| b[row * rank + at] * a[at * inputs + column]).sum()
        };
        (0..outputs).flat_map(|row| (0..inputs).map(move |column| entry(row, column))).collect()
    };
    modules.flat_map(product).collect()
}

/// A residual `R = B' A'` is worth what factors `B'` and `A'` of more rank are, forward, in every gradient, and in those that
/// are clipped; where there is none, graphs compute what those without residuals do.
#[test]
fn residuals_are_part_of_the_weights() {
    let examples = examples(6);
    // What is clipped to so much, without noise, are the gradients.
    let (sampling, noise_multiplier) = (ExampleSampling::Shuffle, 1e-12);
    let dp_sgd = DpSgdSpec { clip_norm: 1e3, noise_multiplier, sampling, delta: 1e-5, epsilon: None };
    for export in ["vit-sdpa", "vit-eager", "vit-dynamo", "vit-opset14"] {
        let directory = tempfile::tempdir().unwrap();
        let built = |name: &str, rank, residual| {
            let path = directory.path().join(name);
            build(&exact_options(export, rank, residual), &path).unwrap();
            ArtifactFolder::open(path).unwrap()
        };
        let (low, full, exact) = (built("low", 3, false), built("full", 5, false), built("exact", 3, true));
        let wide = &full.manifest().adapter;
        let rank = LowRank::new(wide, 3).unwrap();
        assert_eq!(
            (rank.layout(), &exact.manifest().adapter),
            (&low.manifest().adapter, &low.manifest().adapter)
        );
        let values: Vec<f32> = (0..wide.values()).map(|i| (i as f32 * 0.7).sin() * 0.1).collect();
        let rest = products_from(3, wide, &values);
        for kernels in [Kernels::Fused, Kernels::Portable] {
            // The loss before one step, and what that changes.
            let step = |folder: &ArtifactFolder, start: &[f32], residual: Option<&[f32]>, dp_sgd| {
                let mut trainer = trainer(folder, kernels);
                trainer.set_adapter(start).unwrap();
                // Whether there is a residual or none, nothing is left of another client's.
                trainer.set_residual(Some(&vec![9.0; rest.len()])).ok();
                trainer.set_residual(residual).unwrap();
                let loss = trainer.evaluate(&examples, &mut || true).unwrap().loss;
                let optimizer = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
                let spec = TrainingSpec { local_epochs: 1, batch_size: 6, optimizer, dp_sgd, ..spec() };
                let (_, after) = train_as(&spec, None, &mut trainer, &examples);
                (loss, after.iter().zip(start).map(|(after, start)| after - start).collect::<Vec<f32>>())
            };
            let alike = |(loss, change): &(f64, Vec<f32>), (wanted, other): &(f64, Vec<f32>)| {
                let largest = other.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                let apart = difference(change, other);
                assert!((loss - wanted).abs() < 1e-5, "{export}: losses {loss} {wanted}");
                assert!(largest > 1e-4 && apart < 1e-4 * largest, "{export}: {apart} of {largest}");
            };
            let start = rank.cut(&values);
            let found = step(&exact, &start, Some(&rest), None);
            let (loss, change) = step(&full, &values, None, None);
            alike(&found, &(loss, rank.cut(&change)));
            alike(&step(&exact, &start, Some(&rest), Some(dp_sgd)), &found);
            alike(&step(&exact, &start, None, None), &step(&low, &start, None, None));
        }
        let mut plain = trainer(&low, Kernels::Fused);
        let error = plain.set_residual(Some(&rest)).unwrap_err().to_string();
        assert!(error.contains("these artifacts take 0"), "{error}");
    }
}

/// What the GPU sums in another order, it sums in the same precision.
#[test]
#[ignore = "needs an NVIDIA GPU, and an ONNX Runtime library with CUDA in FEDPEFT_ORT_LIB"]
fn every_method_trains_on_cuda_as_on_the_processor() {
    // Batches of eight, which are recorded, and one of three in each epoch, which is not.
    let examples = examples(27);
    // Dropout draws on the device, whose generator is another one.
    for method in methods().filter(|method| *method != dropping()) {
        let directory = tempfile::tempdir().unwrap();
        let folder = artifacts(method.clone(), &directory.path().join("artifacts"));
        let results = [Device::Cpu, Device::Cuda(0)].map(|device| {
            let mut trainer = trainer_on(device, &folder, Kernels::Fused);
            let before = trainer.evaluate(&examples, &mut || true).unwrap();
            let (_, adapter) = train(&mut trainer, &examples);
            if device == Device::Cuda(0) {
                assert_eq!(trainer.shapes(), Some(Shapes::Recorded), "{method}");
            }
            let (_, again) = {
                trainer.set_adapter(&folder.initial_adapter().unwrap()).unwrap();
                train(&mut trainer, &examples)
            };
            assert_eq!(adapter, again, "{method} on {device}: not the same bits again");
            let after = trainer.evaluate(&examples, &mut || true).unwrap();
            assert!(after.loss < 0.8 * before.loss, "{method}: {} after {}", after.loss, before.loss);
            adapter
        });
        let difference = difference(&results[0], &results[1]);
        assert!(difference < 2e-3, "{method}: devices differ by {difference}");
    }
}

/// A session for one size of batches computes what the one for any size does; where launches are recorded, every bit of it.
fn shapes_change_nothing(device: Device, others: &[Shapes]) {
    let examples = examples(27);
    let method = "lora+bias".parse::<Peft>().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let folder = artifacts(method, &directory.path().join("artifacts"));
    let results = |shapes| {
        let options = SessionOptions { device, threads: 1, shapes, ..Default::default() };
        let mut trainer = trainer_with(options, &folder);
        let first = train(&mut trainer, &examples);
        // Another size, then no step of which is of the usual size, then the first again.
        let sizes = [5, 40, 8].map(|batch_size| {
            trainer.set_adapter(&folder.initial_adapter().unwrap()).unwrap();
            train_as(&TrainingSpec { batch_size, ..spec() }, None, &mut trainer, &examples)
        });
        assert_eq!(first, sizes[2], "{shapes:?}");
        assert_eq!(trainer.shapes(), Some(shapes));
        (sizes, trainer.evaluate(&examples, &mut || true).unwrap())
    };
    let (wanted, evaluated) = results(Shapes::Any);
    for shapes in others {
        let (sizes, again) = results(*shapes);
        assert!((again.loss - evaluated.loss).abs() < 1e-5, "{shapes:?}");
        assert_eq!(again.accuracy, evaluated.accuracy);
        for ((_, wanted), (_, got)) in wanted.iter().zip(&sizes) {
            let difference = difference(wanted, got);
            assert!(difference < 1e-4, "{shapes:?}: differ by {difference}");
        }
    }
}

#[test]
fn sessions_for_one_size_of_batches_change_nothing() {
    shapes_change_nothing(Device::Cpu, &[Shapes::Fixed]);
}

#[test]
#[ignore = "needs an NVIDIA GPU, and an ONNX Runtime library with CUDA in FEDPEFT_ORT_LIB"]
fn sessions_for_one_size_of_batches_and_records_change_nothing_on_cuda() {
    shapes_change_nothing(Device::Cuda(0), &[Shapes::Fixed, Shapes::Recorded]);
}

/// What happens to gradients before a step: micro-batches, FedProx, clipping, and SCAFFOLD's correction.
#[test]
#[ignore = "needs an NVIDIA GPU, and an ONNX Runtime library with CUDA in FEDPEFT_ORT_LIB"]
fn transformed_gradients_on_cuda_are_those_of_the_processor() {
    let examples = examples(27);
    let directory = tempfile::tempdir().unwrap();
    let folder = artifacts("lora+bias".parse().unwrap(), &directory.path().join("artifacts"));
    let values = folder.manifest().adapter.values();
    let correction: Vec<f32> = (0..values).map(|i| (i as f32 * 0.37).sin() * 0.02).collect();
    let specs = [
        (TrainingSpec { accumulate: 3, ..spec() }, None),
        (TrainingSpec { proximal_mu: 0.5, ..spec() }, None),
        (TrainingSpec { clip_norm: Some(0.1), ..spec() }, None),
        (spec(), Some(correction.as_slice())),
        (
            TrainingSpec { accumulate: 2, proximal_mu: 0.5, clip_norm: Some(0.5), ..spec() },
            Some(correction.as_slice()),
        ),
    ];
    let mut trainers =
        [Device::Cpu, Device::Cuda(0)].map(|device| trainer_on(device, &folder, Kernels::Fused));
    for (spec, correction) in specs {
        let [cpu, cuda] = trainers.each_mut().map(|trainer| {
            trainer.set_adapter(&folder.initial_adapter().unwrap()).unwrap();
            train_as(&spec, correction, trainer, &examples).1
        });
        let difference = difference(&cpu, &cuda);
        assert!(difference < 2e-3, "{spec:?}: devices differ by {difference}");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU, and an ONNX Runtime library with CUDA in FEDPEFT_ORT_LIB"]
fn features_on_cuda_are_those_of_the_processor() {
    let examples = examples(27);
    let directory = tempfile::tempdir().unwrap();
    let folder = artifacts("head".parse().unwrap(), &directory.path().join("artifacts"));
    let trained = [Device::Cpu, Device::Cuda(0)].map(|device| {
        let mut whole = trainer_on(device, &folder, Kernels::Fused);
        let (mut extractor, mut trainer) = whole.on_features().unwrap();
        let features = extractor.extract(&examples, &mut || true).unwrap();
        trainer.set_adapter(&folder.initial_adapter().unwrap()).unwrap();
        let on_features = train_as(&spec(), None, &mut trainer, &features).1;
        let on_examples = train(&mut whole, &examples).1;
        assert!(difference(&on_features, &on_examples) < 1e-4, "{device}");
        on_features
    });
    let difference = difference(&trained[0], &trained[1]);
    assert!(difference < 2e-3, "devices differ by {difference}");
}

#[test]
#[ignore = "needs an NVIDIA GPU, and an ONNX Runtime library with CUDA in FEDPEFT_ORT_LIB"]
fn adamw_and_dropout_learn_on_cuda() {
    let examples = examples(24);
    let directory = tempfile::tempdir().unwrap();
    let folder = artifacts(dropping(), &directory.path().join("artifacts"));
    let mut trainer = trainer_on(Device::Cuda(0), &folder, Kernels::Fused);
    let before = trainer.evaluate(&examples, &mut || true).unwrap();
    let spec = TrainingSpec { local_epochs: 12, batch_size: 8, learning_rate: 5e-3, ..Default::default() };
    let seed = OrderSeed { run: 1, round: 1, client: "c" };
    trainer
        .train(LocalTraining { spec: &spec, seed, rounds: 1, correction: None }, &examples, &mut || true)
        .unwrap();
    let after = trainer.evaluate(&examples, &mut || true).unwrap();
    assert!(after.loss < 0.8 * before.loss, "{} after {}", after.loss, before.loss);
}

#[test]
fn dropout_drops_in_training_alone_and_by_seed() {
    let examples = examples(8);
    let all: Vec<usize> = (0..8).collect();
    let directory = tempfile::tempdir().unwrap();
    let folder = artifacts(dropping(), &directory.path().join("artifacts"));
    let mut trainer = trainer(&folder, Kernels::Fused);
    train(&mut trainer, &examples);
    let mut loss = |seed| {
        trainer.reseed(seed);
        (
            trainer.gradients(&examples, &all).unwrap().loss,
            trainer.evaluate(&examples, &mut || true).unwrap().loss,
        )
    };
    let (first, second, again) = (loss(1), loss(2), loss(1));
    assert_eq!(first, again);
    assert_ne!(first.0, second.0);
    assert_eq!(first.1, second.1);
}

#[test]
fn micro_batches_of_a_step_drop_different_places() {
    let examples = examples(8);
    let directory = tempfile::tempdir().unwrap();
    let folder = artifacts(dropping(), &directory.path().join("artifacts"));
    let mut trainer = trainer(&folder, Kernels::Fused);
    train(&mut trainer, &examples);
    trainer.reseed(1);
    let alone = trainer.gradients(&examples, &[0]).unwrap().loss;
    let spec = TrainingSpec { batch_size: 2, accumulate: 2, ..Default::default() };
    let mut optimizer = trainer.optimizer(&spec).unwrap();
    // The same example twice: with the same places dropped, the mean would be the loss of one.
    let twice = trainer.train_step(&mut optimizer, &examples, &[0, 0]).unwrap().loss;
    assert!((twice - alone).abs() > 1e-4, "{twice} and {alone}");
}

#[test]
fn resumed_trainings_drop_the_same_places() {
    resumed_trainings_give_the_bits_of_straight_ones(Device::Cpu);
}

#[test]
#[ignore = "needs an NVIDIA GPU, and an ONNX Runtime library with CUDA in FEDPEFT_ORT_LIB"]
fn resumed_trainings_on_cuda_give_the_bits_of_straight_ones() {
    resumed_trainings_give_the_bits_of_straight_ones(Device::Cuda(0));
}

fn resumed_trainings_give_the_bits_of_straight_ones(device: Device) {
    let trainer = |folder: &ArtifactFolder| trainer_on(device, folder, Kernels::Fused);
    let examples = examples(24);
    let directory = tempfile::tempdir().unwrap();
    let folder = artifacts(dropping(), &directory.path().join("artifacts"));
    let seed = OrderSeed { run: 1, round: 1, client: "c" };
    let sgd = OptimizerSpec::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-4 };
    for optimizer in [sgd, OptimizerSpec::default()] {
        let spec =
            TrainingSpec { local_epochs: 2, batch_size: 5, accumulate: 2, optimizer, ..Default::default() };
        let training = LocalTraining { spec: &spec, seed, rounds: 1, correction: None };
        let values = |trainer: &Trainer| {
            let mut values = Vec::new();
            trainer.adapter_into(&mut values).unwrap();
            values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let mut straight = trainer(&folder);
        let wanted = straight.train(training, &examples, &mut || true).unwrap();
        // Ten steps: in the first epoch, between both, in the second, and when all is done.
        for stop in [0, 3, 5, 9, 10] {
            let (mut first, mut snapshot) = (trainer(&folder), None);
            let stopped = first.train_from(training, None, &examples, &mut |standing| {
                snapshot = Some(standing.snapshot()?);
                Ok(standing.steps() < stop)
            });
            assert_eq!(stopped.is_ok(), stop == 10);
            drop(first);
            let (mut second, mut steps) = (trainer(&folder), 0);
            let resumed = second.train_from(training, snapshot.as_ref(), &examples, &mut |_| {
                steps += 1;
                Ok(true)
            });
            let resumed = resumed.unwrap();
            assert_eq!((resumed.steps, resumed.loss), (wanted.steps, wanted.loss));
            assert_eq!(steps - 1, 10 - stop, "steps were repeated");
            assert!(values(&straight) == values(&second), "{optimizer:?} stopped before step {stop}");
        }
    }
}
