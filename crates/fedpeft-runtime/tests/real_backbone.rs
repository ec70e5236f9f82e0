//! Gradients of a real backbone on ONNX Runtime: our kernels and the portable function bodies agree, and both
//! agree with the reference evaluator in f64.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::{collections::HashMap, path::Path};

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, Storage, build};
use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{Model, Tensor};
use fedpeft_peft::{Lora, Method, Pooling};
use fedpeft_protocol::run::{DpSgdSpec, ExampleSampling, OptimizerSpec, TrainingSpec};
use fedpeft_runtime::{
    Batch, Device, Examples, InMemory, Kernels, LocalTraining, OrderSeed, Runtime, SessionOptions, Shapes,
    Trainer, Values,
};

const SIZE: usize = 28;
const BATCH: usize = 3;

fn artifacts(method: Method, path: &Path) -> ArtifactFolder {
    stored(method, Storage::F32, path)
}

fn stored(method: Method, storage: Storage, path: &Path) -> ArtifactFolder {
    let options = BuildOptions {
        storage,
        dp_sgd: true,
        pooling: Pooling::Mean,
        ..BuildOptions::image_classification(
            fedpeft_testkit::assets().dinov2().unwrap(),
            "/backbone/layernorm/Add_1_output_0",
            SIZE,
            10,
            method,
        )
    };
    build(&options, path).unwrap();
    ArtifactFolder::open(path).unwrap()
}

/// Images as waves of different lengths, and the labels 0, 1, 2.
fn examples() -> InMemory {
    let inputs =
        (0..BATCH * 3 * SIZE * SIZE).map(|i| (i as f32 * 0.013).sin() + (i as f32 * 0.37).cos()).collect();
    InMemory::new(inputs, vec![0, 1, 2]).unwrap()
}

/// The initial adapter with a head that lets gradients through.
fn start(folder: &ArtifactFolder) -> Vec<f32> {
    let mut values = folder.initial_adapter().unwrap();
    for (spec, range) in folder.manifest().adapter.ranges().filter(|(spec, _)| spec.name.starts_with("head."))
    {
        let len = spec.values();
        values[range].iter_mut().enumerate().for_each(|(i, v)| *v = ((i + len) as f32 * 0.7).sin() * 0.1);
    }
    values
}

/// Gradients, as what one step of plain SGD subtracts, divided by its rate.
fn gradients(folder: &ArtifactFolder, kernels: Kernels) -> Vec<f32> {
    gradients_on(Device::Cpu, folder, kernels)
}

fn gradients_on(device: Device, folder: &ArtifactFolder, kernels: Kernels) -> Vec<f32> {
    const RATE: f32 = 1024.0;
    let runtime = Runtime::load(Some(&fedpeft_testkit::assets().ort_lib().unwrap())).unwrap();
    let options = SessionOptions { device, threads: 2, kernels, ..Default::default() };
    let mut trainer = Trainer::new(&runtime, folder.clone(), options).unwrap();
    let before = start(folder);
    trainer.set_adapter(&before).unwrap();
    let sgd = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let training = TrainingSpec { optimizer: sgd, learning_rate: f64::from(RATE), ..Default::default() };
    let mut optimizer = trainer.optimizer(&training).unwrap();
    trainer.train_step(&mut optimizer, &examples(), &[0, 1, 2]).unwrap();
    let mut after = Vec::new();
    trainer.adapter_into(&mut after).unwrap();
    before.iter().zip(&after).map(|(before, after)| (before - after) / RATE).collect()
}

/// The same gradients by the reference evaluator.
fn reference(folder: &ArtifactFolder) -> Vec<f64> {
    let manifest = folder.manifest();
    let model = Model::load(folder.file(&manifest.files.training)).unwrap();
    let (mut pixels, mut labels) = (vec![0.0; BATCH * 3 * SIZE * SIZE], vec![0; BATCH]);
    let mut batch = Batch { inputs: vec![Values::F32(&mut pixels)], labels: Values::I64(&mut labels) };
    examples().fill(&[0, 1, 2], &mut batch).unwrap();
    let value = |tensor: Tensor| Value::from_tensor(&tensor).unwrap();
    let mut inputs = HashMap::from([
        (manifest.inputs[0].name.clone(), value(Tensor::f32([BATCH, 3, SIZE, SIZE], &pixels))),
        ("labels".to_owned(), value(Tensor::i64([BATCH], &labels))),
    ]);
    let adapter = start(folder);
    for (spec, range) in manifest.adapter.ranges() {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| *dim as usize).collect();
        inputs.insert(spec.name.clone(), value(Tensor::f32(shape, &adapter[range])));
    }
    let outputs = Interpreter::new(&model).unwrap().run(&inputs).unwrap();
    let gradient =
        |name: &str| outputs[&format!("{name}.grad")].as_float().unwrap().iter().copied().collect::<Vec<_>>();
    manifest.adapter.tensors().iter().flat_map(|spec| gradient(&spec.name)).collect()
}

/// Compares tensor by tensor, relative to the largest value of the tensor.
fn compare(folder: &ArtifactFolder, got: &[f32], wanted: &[f64], tolerance: f64) {
    for (spec, range) in folder.manifest().adapter.ranges() {
        let pairs = || got[range.clone()].iter().zip(&wanted[range.clone()]);
        let scale = pairs().map(|(_, w)| w.abs()).fold(1e-2, f64::max);
        let worst = pairs().map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
        assert!(worst <= tolerance * scale, "{}: off by {worst}, the largest value is {scale}", spec.name);
    }
}

#[test]
fn kernels_bodies_and_reference_agree() {
    for method in [Method::Bias, Method::Full] {
        let dir = tempfile::tempdir().unwrap();
        let folder = artifacts(method, &dir.path().join("artifacts"));
        let [fused, portable] =
            [Kernels::Fused, Kernels::Portable].map(|kernels| gradients(&folder, kernels));
        let wanted = reference(&folder);
        compare(&folder, &fused, &wanted, 1e-4);
        compare(&folder, &portable, &wanted, 1e-4);
        let portable: Vec<f64> = portable.iter().map(|v| f64::from(*v)).collect();
        compare(&folder, &fused, &portable, 5e-5);
    }
}

#[test]
fn clipped_sums_are_those_of_a_loop_over_the_examples() {
    clipped_sums_are_those_of_a_loop(Device::Cpu);
}

#[test]
#[ignore = "needs an NVIDIA GPU, and an ONNX Runtime library with CUDA in FEDPEFT_ORT_LIB"]
fn clipped_sums_on_cuda_are_those_of_a_loop_over_the_examples() {
    clipped_sums_are_those_of_a_loop(Device::Cuda(0));
}

/// A step of DP-SGD, with noise that no `f32` holds, is that of a loop over the examples, each a batch of its own.
fn clipped_sums_are_those_of_a_loop(device: Device) {
    const RATE: f64 = 1024.0;
    let runtime = Runtime::load(Some(&fedpeft_testkit::assets().ort_lib().unwrap())).unwrap();
    let optimizer = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let plain = TrainingSpec { optimizer, learning_rate: RATE, batch_size: 3, ..Default::default() };
    let length = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    for method in [Method::Bias, Method::Lora(Lora::default()), Method::Full] {
        let dir = tempfile::tempdir().unwrap();
        let folder = artifacts(method.clone(), &dir.path().join("artifacts"));
        let options = SessionOptions { device, threads: 2, kernels: Kernels::Fused, ..Default::default() };
        let mut trainer = Trainer::new(&runtime, folder.clone(), options).unwrap();
        let before = start(&folder);
        let moved = |trainer: &Trainer| -> Vec<f64> {
            let mut after = Vec::new();
            trainer.adapter_into(&mut after).unwrap();
            before.iter().zip(&after).map(|(a, b)| f64::from(a - b) / RATE).collect()
        };
        let mut each = Vec::new();
        for example in 0..BATCH {
            trainer.set_adapter(&before).unwrap();
            let mut optimizer = trainer.optimizer(&plain).unwrap();
            trainer.train_step(&mut optimizer, &examples(), &[example]).unwrap();
            each.push(moved(&trainer));
        }
        let lengths: Vec<f64> = each.iter().map(|gradient| length(gradient)).collect();
        let mut sorted = lengths.clone();
        sorted.sort_by(f64::total_cmp);
        let clip_norm = (sorted[0] + sorted[1]) / 2.0;
        let sampling = ExampleSampling::Shuffle;
        let dp_sgd = DpSgdSpec { clip_norm, noise_multiplier: 1e-12, sampling, delta: 1e-5, epsilon: None };
        let spec = TrainingSpec { dp_sgd: Some(dp_sgd), ..plain.clone() };
        let seed = OrderSeed { run: 1, round: 1, client: "c" };
        trainer.set_adapter(&before).unwrap();
        let training = LocalTraining { spec: &spec, seed, rounds: 1, correction: None };
        trainer.train(training, &examples(), &mut || true).unwrap();
        let got = moved(&trainer);
        if device != Device::Cpu {
            assert_eq!(trainer.shapes(), Some(Shapes::Recorded), "{method:?}");
        }
        let error_of = |got: &[f64], share: &dyn Fn(usize) -> f64| {
            let wanted: Vec<f64> =
                (0..got.len()).map(|i| (0..BATCH).map(|n| each[n][i] * share(n)).sum()).collect();
            let differences: Vec<f64> = got.iter().zip(&wanted).map(|(a, b)| a - b).collect();
            length(&differences) / length(&wanted)
        };
        let share = |n: usize| (clip_norm / lengths[n]).min(1.0) / BATCH as f64;
        let error = error_of(&got, &share);
        // What f32 makes of a batch of three and of three batches, in training without clipping.
        trainer.set_adapter(&before).unwrap();
        let mut optimizer = trainer.optimizer(&plain).unwrap();
        trainer.train_step(&mut optimizer, &examples(), &[0, 1, 2]).unwrap();
        let plain_error = error_of(&moved(&trainer), &|_| 1.0 / BATCH as f64);
        assert!(error < 1e-5, "{method:?}: sums differ by {error}, without clipping by {plain_error}");
    }
}

#[test]
fn half_precision_halves_the_file_and_hardly_moves_gradients() {
    let dir = tempfile::tempdir().unwrap();
    let whole = artifacts(Method::Bias, &dir.path().join("f32"));
    let wanted = gradients(&whole, Kernels::Fused);
    let size = |folder: &ArtifactFolder| folder.manifest().files.backbone.size as f64;
    let length =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    for (storage, tolerance) in [(Storage::F16, 3e-3), (Storage::Bf16, 3e-2)] {
        let half = stored(Method::Bias, storage, &dir.path().join(format!("{storage:?}")));
        assert_eq!(half.manifest().backbone.storage, storage);
        assert!((size(&half) / size(&whole) - 0.5).abs() < 0.01);
        let got = gradients(&half, Kernels::Fused);
        let error =
            length(&mut got.iter().zip(&wanted).map(|(a, b)| a - b)) / length(&mut wanted.iter().copied());
        assert!(error < tolerance, "{storage:?}: {error}");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU, and an ONNX Runtime library with CUDA in FEDPEFT_ORT_LIB"]
fn gradients_on_cuda_are_those_of_the_reference() {
    for method in [Method::Bias, Method::Full] {
        let dir = tempfile::tempdir().unwrap();
        let folder = artifacts(method, &dir.path().join("artifacts"));
        let got = gradients_on(Device::Cuda(0), &folder, Kernels::Fused);
        compare(&folder, &got, &reference(&folder), 1e-4);
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU, and an ONNX Runtime library with CUDA in FEDPEFT_ORT_LIB"]
fn half_precision_on_cuda_is_that_of_the_processor() {
    let dir = tempfile::tempdir().unwrap();
    for storage in [Storage::F16, Storage::Bf16] {
        let folder = stored(Method::Bias, storage, &dir.path().join(format!("{storage:?}")));
        let got = gradients_on(Device::Cuda(0), &folder, Kernels::Fused);
        let wanted: Vec<f64> = gradients(&folder, Kernels::Fused).into_iter().map(f64::from).collect();
        compare(&folder, &got, &wanted, 1e-3);
    }
}
