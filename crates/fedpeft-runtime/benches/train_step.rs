//! What a training step costs, as a multiple of the forward pass.
//!
//! ```text
//! cargo bench -p fedpeft-runtime --bench train_step            # 56 px, batch 32, 2 threads
//! cargo bench -p fedpeft-runtime --bench train_step -- --size 112 --batch 16 --threads 2 --rounds 20 --json
//! cargo bench -p fedpeft-runtime --bench train_step -- --device cuda   # FEDPEFT_ORT_LIB names a library with CUDA
//! cargo bench -p fedpeft-runtime --bench train_step -- --shapes fixed  # any, fixed or recorded: see `Shapes`
//! ```
//!
//! Each round times one step of every kind, one after the other, so that a change in the machine's speed
//! meets all of them alike; a row gives the median over rounds of the time and of the ratio to the forward
//! pass of the whole backbone (an evaluation graph, which computes loss and logits) of the same round, with the quartiles
//! of the ratio. Rows of DP-SGD say as well what multiple they are of the same step without it.
#![allow(clippy::print_stdout, reason = "a bench reports on standard output")]

use std::{error::Error, path::Path, time::Instant};

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, build};
use fedpeft_peft::{Lora, Method, Peft, Pooling};
use fedpeft_protocol::run::{DpSgdSpec, ExampleSampling, TrainingSpec};
use fedpeft_runtime::{
    Device, InMemory, Kernels, LocalTraining, Optimizer, OrderSeed, Runtime, SessionOptions, Shapes, Trainer,
    Weights,
};

const OUTPUT: &str = "/backbone/layernorm/Add_1_output_0";
/// LoRA with a residual beside each tuned weight, as aggregation `lora_exact` has it.
const RESIDUAL: &str = "residual";

struct Settings {
    size: usize,
    batch: usize,
    threads: usize,
    rounds: usize,
    device: Device,
    shapes: Shapes,
    json: bool,
    /// Only rows whose names hold this, and the forward pass.
    only: Option<String>,
    /// Only steps, no whole rounds of one step.
    steps: bool,
}

impl Settings {
    fn from_args() -> Result<Self, Box<dyn Error>> {
        let args: Vec<String> = std::env::args().collect();
        let text = |name: &str| args.get(args.iter().position(|arg| arg == name)? + 1);
        let number = |name: &str, default| text(name).and_then(|text| text.parse().ok()).unwrap_or(default);
        Ok(Self {
            size: number("--size", 56),
            batch: number("--batch", 32),
            threads: number("--threads", 2),
            rounds: number("--rounds", 15),
            device: text("--device").map_or(Ok(Device::Cpu), |text| text.parse())?,
            shapes: match text("--shapes").map(String::as_str) {
                None => Shapes::Auto,
                Some("any") => Shapes::Any,
                Some("fixed") => Shapes::Fixed,
                Some("recorded") => Shapes::Recorded,
                Some(other) => return Err(format!("--shapes {other}: any, fixed or recorded").into()),
            },
            json: args.iter().any(|arg| arg == "--json"),
            only: text("--only").cloned(),
            steps: args.iter().any(|arg| arg == "--steps"),
        })
    }

    fn wants(&self, name: &str) -> bool {
        name == "forward" || self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

/// One row of the table.
struct Subject {
    name: &'static str,
    trainer: Trainer,
    work: Work,
    seconds: Vec<f64>,
}

/// What is timed of a row.
#[derive(Clone, Copy)]
enum Timed {
    Forward,
    Gradients,
    Step,
    Round { private: bool },
}

enum Work {
    Forward,
    Gradients,
    Step(Box<Optimizer>),
    /// A round of one step, with all that belongs to it.
    Round(Box<TrainingSpec>),
}

impl Subject {
    fn run(&mut self, images: &InMemory, batch: usize) -> Result<f64, Box<dyn Error>> {
        let indices: Vec<usize> = (0..batch).collect();
        let start = Instant::now();
        match &mut self.work {
            Work::Forward => drop(self.trainer.evaluate(images, &mut || true)?),
            Work::Gradients => drop(self.trainer.gradients(images, &indices)?),
            Work::Round(spec) => {
                let seed = OrderSeed { run: 1, round: 1, client: "c" };
                let training = LocalTraining { spec, seed, rounds: 1, correction: None };
                self.trainer.train(training, images, &mut || true)?;
            }
            Work::Step(optimizer) => drop(self.trainer.train_step(optimizer, images, &indices)?),
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Quartiles of what multiple this is of another in the same round.
    fn over(&self, other: &Self) -> [f64; 3] {
        let ratios: Vec<f64> = self.seconds.iter().zip(&other.seconds).map(|(a, b)| a / b).collect();
        quartiles(&ratios)
    }
}

fn subjects(settings: &Settings, folder: &Path) -> Result<Vec<Subject>, Box<dyn Error>> {
    let runtime = Runtime::load(None)?;
    let backbone = fedpeft_testkit::assets().dinov2()?;
    let mut subjects = Vec::new();
    // The reference is ONNX Runtime's own forward pass, as fast as it can be: standard operators, packed weights.
    let own = SessionOptions { kernels: Kernels::Portable, weights: Weights::Packed, ..Default::default() };
    let portable = SessionOptions { kernels: Kernels::Portable, ..Default::default() };
    let packed = SessionOptions { weights: Weights::Packed, ..Default::default() };
    let mapped = SessionOptions { weights: Weights::Once, ..Default::default() };
    let usual = SessionOptions::default();
    let round = |private| Timed::Round { private };
    let rows = [
        ("forward", "bias", &own, Timed::Forward),
        ("forward, as evaluated", "bias", &usual, Timed::Forward),
        ("head", "head", &usual, Timed::Gradients),
        ("bias", "bias", &usual, Timed::Gradients),
        ("bias, mapped weights", "bias", &mapped, Timed::Gradients),
        ("bias, packed weights", "bias", &packed, Timed::Gradients),
        ("bias, portable operators", "bias", &portable, Timed::Gradients),
        ("bias and AdamW step", "bias", &usual, Timed::Step),
        ("layernorm", "layernorm", &usual, Timed::Gradients),
        ("lora", "lora", &usual, Timed::Gradients),
        ("lora, packed weights", "lora", &packed, Timed::Gradients),
        ("lora with residuals", RESIDUAL, &usual, Timed::Gradients),
        ("ia3", "ia3", &usual, Timed::Gradients),
        ("forward of adapter", "adapter", &own, Timed::Forward),
        ("adapter", "adapter", &usual, Timed::Gradients),
        ("forward of prompt", "prompt", &own, Timed::Forward),
        ("prompt", "prompt", &usual, Timed::Gradients),
        ("forward of prefix", "prefix", &own, Timed::Forward),
        ("prefix", "prefix", &usual, Timed::Gradients),
        ("full", "full", &usual, Timed::Gradients),
        ("full and AdamW step", "full", &usual, Timed::Step),
        ("bias, one step", "bias", &usual, round(false)),
        ("bias, one step of DP-SGD", "bias", &usual, round(true)),
        ("lora, one step", "lora", &usual, round(false)),
        ("lora, one step of DP-SGD", "lora", &usual, round(true)),
        ("full, one step", "full", &usual, round(false)),
        ("full, one step of DP-SGD", "full", &usual, round(true)),
    ];
    let wanted = rows.into_iter().filter(|(name, _, _, timed)| {
        settings.wants(name) && !(settings.steps && matches!(timed, Timed::Round { .. }))
    });
    for (name, method, options, timed) in wanted {
        let reference = name == "forward" || name.starts_with("forward of ");
        // The reference is the forward pass of the whole backbone. Our graphs, that of evaluation included, compute of the last
        // block what the class token needs (ADR 30): as a reference they would hide what that saves. A mean needs all
        // tokens, and costs no more than a selection.
        let pooling = if reference { Pooling::Mean } else { Pooling::Cls };
        let path = folder.join(format!("{method} {pooling:?}"));
        if !path.exists() {
            let peft = match method {
                RESIDUAL => Method::Lora(Lora { residual: true, ..Lora::default() }).into(),
                named => named.parse::<Peft>()?,
            };
            let options = BuildOptions::image_classification(&backbone, OUTPUT, settings.size, 10, peft);
            build(&BuildOptions { pooling, dp_sgd: !settings.steps, ..options }, &path)?;
        }
        let artifacts = ArtifactFolder::open(&path)?;
        let start = artifacts.initial_adapter()?;
        let (device, threads, shapes) = (settings.device, settings.threads, settings.shapes);
        let options = SessionOptions { device, threads, shapes, ..options.clone() };
        let mut trainer = Trainer::new(&runtime, artifacts, options)?;
        trainer.set_adapter(&start)?;
        // A rate of almost nothing: the values must not wander while they are timed.
        let training =
            TrainingSpec { learning_rate: 1e-12, batch_size: settings.batch as u32, ..Default::default() };
        let work = match timed {
            Timed::Forward => Work::Forward,
            Timed::Gradients => Work::Gradients,
            Timed::Round { private: false } => Work::Round(Box::new(training)),
            // Batches of a fixed size, to be compared.
            Timed::Round { private: true } => {
                let sampling = ExampleSampling::Shuffle;
                let dp_sgd =
                    DpSgdSpec { clip_norm: 1.0, noise_multiplier: 1.0, sampling, delta: 1e-5, epsilon: None };
                Work::Round(Box::new(TrainingSpec { dp_sgd: Some(dp_sgd), ..training }))
            }
            Timed::Step => Work::Step(Box::new(trainer.optimizer(&training)?)),
        };
        subjects.push(Subject { name, trainer, work, seconds: Vec::new() });
    }
    Ok(subjects)
}

/// First quartile, median and third quartile.
fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|share| sorted[((sorted.len() - 1) as f64 * share).round() as usize])
}

fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::from_args()?;
    let folder = tempfile::tempdir()?;
    let mut subjects = subjects(&settings, folder.path())?;
    let pixels = settings.batch * 3 * settings.size * settings.size;
    let inputs = (0..pixels).map(|i| (i as f32 * 0.37).sin() * 2.0).collect();
    let labels = (0..settings.batch as i64).map(|i| i % 10).collect();
    let images = InMemory::new(inputs, labels).ok_or("the batch is empty")?;
    for round in 0..settings.rounds + 2 {
        for subject in &mut subjects {
            let seconds = subject.run(&images, settings.batch)?;
            // The first two rounds make sessions and touch memory.
            if round >= 2 {
                subject.seconds.push(seconds);
            }
        }
    }
    let Settings { size, batch, threads, rounds, device, json, .. } = settings;
    if !json {
        println!("{device}, {size} px, batch {batch}, {threads} threads, {rounds} rounds");
        println!("{:<26} {:>12} {:>10} {:>15}", "", "ms per image", "x forward", "quartiles");
    }
    for subject in &subjects {
        let name = subject.name;
        let per_image =
            subject.seconds.iter().map(|seconds| seconds * 1e3 / batch as f64).collect::<Vec<_>>();
        let [ms_low, ms, ms_high] = quartiles(&per_image);
        let [low, ratio, high] = subject.over(&subjects[0]);
        // What adds tokens or modules is put beside the forward pass with these as well.
        let own = subjects.iter().find(|other| other.name.strip_prefix("forward of ") == Some(name));
        let own = own.map(|own| subject.over(own));
        let plain = subjects.iter().find(|plain| name.strip_suffix(" of DP-SGD") == Some(plain.name));
        if json {
            let own = own.map_or_else(String::new, |[low, ratio, high]| {
                format!(r#","own":{{"ratio":{ratio:.4},"low":{low:.4},"high":{high:.4}}}"#)
            });
            println!(
                r#"{{"name":"{name}","size":{size},"batch":{batch},"threads":{threads},"device":"{device}","rounds":{rounds},"ms_per_image":{ms:.4},"ms_low":{ms_low:.4},"ms_high":{ms_high:.4},"ratio":{ratio:.4},"low":{low:.4},"high":{high:.4}{own}}}"#
            );
            continue;
        }
        print!("{name:<26} {ms:>12.2} {ratio:>10.2} {low:>7.2}-{high:.2}");
        if let Some([low, ratio, high]) = own {
            print!("   {ratio:.2} x its own forward ({low:.2}-{high:.2})");
        }
        if let Some([low, ratio, high]) = plain.map(|plain| subject.over(plain)) {
            print!("   {ratio:.2} x without ({low:.2}-{high:.2})");
        }
        println!();
    }
    Ok(())
}
