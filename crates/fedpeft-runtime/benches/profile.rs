//! Where the memory and the time of a training step go.
//!
//! ```text
//! cargo bench -p fedpeft-runtime --bench profile -- --method bias --time   # 56 px, batch 32, 2 threads
//! cargo bench -p fedpeft-runtime --bench profile -- --method forward       # loss and logits, no gradients
//! ```
//!
//! The first table says what the process holds after each stage, as Linux counts it: memory of its own, and pages of
//! files (the backbone, the programs). With `--time` there is a second, which adds up what ONNX Runtime's own profile says
//! of each operator, by what it is there for; `--time FILE.json` keeps the profile. `--packed` holds weights packed.
#![allow(clippy::print_stdout, reason = "a bench reports on standard output")]

use std::{collections::BTreeMap, error::Error, path::Path};

use fedpeft_artifacts::{ArtifactFolder, BuildOptions, build};
use fedpeft_peft::Peft;
use fedpeft_runtime::{Device, InMemory, Runtime, SessionOptions, Trainer, Weights};
use serde::Deserialize;

const OUTPUT: &str = "/backbone/layernorm/Add_1_output_0";
/// What ONNX Runtime makes of the loss: what runs after it computes gradients.
const LOSS: &str = "LogSoftmax";

/// An event of ONNX Runtime's profile, in the order of their ends.
#[derive(Deserialize)]
struct Event {
    name: String,
    /// Microseconds.
    dur: f64,
    #[serde(default)]
    args: Args,
}

#[derive(Deserialize, Default)]
struct Args {
    op_name: Option<String>,
    #[serde(default)]
    input_type_shape: Vec<BTreeMap<String, Vec<u64>>>,
    #[serde(default)]
    output_type_shape: Vec<BTreeMap<String, Vec<u64>>>,
}

fn shape(of: &[BTreeMap<String, Vec<u64>>], index: usize) -> &[u64] {
    of.get(index).and_then(|typed| typed.values().next()).map_or(&[], Vec::as_slice)
}

/// What an operator is there for.
fn purpose(op: &str, args: &Args, backward: bool) -> String {
    let pass = if backward { "backward" } else { "forward" };
    match op {
        // A product of a gradient and an activation has as many rows as a weight, not as the batch has tokens.
        "Gemm" | "FusedGemm" => {
            let of_weight =
                shape(&args.output_type_shape, 0).first() != shape(&args.input_type_shape, 0).first();
            format!("{pass}: {op}{}", if backward && of_weight { ", gradient of a weight" } else { "" })
        }
        _ => format!("{pass}: {op}"),
    }
}

/// What operators are there for, how long they take in a step, in milliseconds, and how many there are.
type Times = Vec<(String, f64, usize)>;

/// The times of `steps`, and how long each takes in all.
fn times(path: &Path, steps: usize) -> Result<(Times, f64), Box<dyn Error>> {
    let events: Vec<Event> = serde_json::from_slice(&std::fs::read(path)?)?;
    let runs = events.iter().filter(|event| event.name == "model_run").count();
    let (mut run, mut backward) = (0, false);
    let (mut sums, mut whole) = (BTreeMap::<String, (f64, usize)>::new(), 0.0);
    for event in &events {
        let counts = run + steps >= runs;
        match &event.args.op_name {
            Some(op) if event.name.ends_with("_kernel_time") => {
                if counts {
                    let sum = sums.entry(purpose(op, &event.args, backward)).or_default();
                    *sum = (sum.0 + event.dur, sum.1 + 1);
                }
                backward |= op == LOSS;
            }
            _ if event.name == "model_run" => {
                whole += if counts { event.dur } else { 0.0 };
                (run, backward) = (run + 1, false);
            }
            _ => {}
        }
    }
    let each = |value: f64| value / 1e3 / steps as f64;
    let mut rows: Vec<_> =
        sums.into_iter().map(|(what, (time, count))| (what, each(time), count / steps)).collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok((rows, each(whole)))
}

/// Memory of this process in MiB: its own, that of files, and the most of both together so far.
fn memory() -> Result<[f64; 3], Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
    };
    Ok(["RssAnon", "RssFile", "VmHWM"].map(|name| field(name).unwrap_or(f64::NAN)))
}

fn stage(name: &str) -> Result<(), Box<dyn Error>> {
    let [own, file, most] = memory()?;
    println!("{name:<28} {own:>10.0} {file:>10.0} {:>10.0} {most:>10.0}", own + file);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let text = |name: &str| args.get(args.iter().position(|arg| arg == name)? + 1).map(String::as_str);
    let number = |name: &str, default| text(name).and_then(|text| text.parse().ok()).unwrap_or(default);
    let method = text("--method").unwrap_or("bias");
    let (size, batch): (usize, usize) = (number("--size", 56), number("--batch", 32));
    let (threads, steps) = (number("--threads", 2), number("--steps", 10));
    let forward = method == "forward";
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("artifacts");
    // In a process of its own: what building takes would count as the most so far.
    if let Some(path) = text("--build") {
        let backbone = fedpeft_testkit::assets().dinov2()?;
        let method: Peft = if forward { "head" } else { method }.parse()?;
        build(&BuildOptions::image_classification(&backbone, OUTPUT, size, 10, method), path.as_ref())?;
        return Ok(());
    }
    let built = std::process::Command::new(std::env::current_exe()?)
        .args(["--build".as_ref(), path.as_os_str(), "--method".as_ref(), method.as_ref()])
        .args(["--size", &size.to_string()])
        .status()?;
    if !built.success() {
        return Err("the artifacts were not built".into());
    }

    println!("{:<28} {:>10} {:>10} {:>10} {:>10}", "MiB after", "its own", "of files", "together", "at most");
    stage("start")?;
    let runtime = Runtime::load(Some(&fedpeft_testkit::assets().ort_lib()?))?;
    stage("loading ONNX Runtime")?;
    let artifacts = ArtifactFolder::open(&path)?;
    let start = artifacts.initial_adapter()?;
    let profile = args.iter().any(|arg| arg == "--time").then(|| folder.path().join("profile"));
    let packed = args.iter().any(|arg| arg == "--packed");
    let weights = if packed { Weights::Packed } else { Weights::Once };
    let options = SessionOptions { device: Device::Cpu, threads, weights, profile, ..Default::default() };
    let mut trainer = Trainer::new(&runtime, artifacts, options)?;
    trainer.set_adapter(&start)?;
    stage("checking the artifacts")?;
    let pixels = batch * 3 * size * size;
    let inputs = (0..pixels).map(|i| (i as f32 * 0.37).sin() * 2.0).collect();
    let labels = (0..batch as i64).map(|i| i % 10).collect();
    let images = InMemory::new(inputs, labels).ok_or("the batch is empty")?;
    let indices: Vec<usize> = (0..batch).collect();
    let step = |trainer: &mut Trainer, indices: &[usize]| -> Result<(), Box<dyn Error>> {
        match forward {
            true => drop(trainer.evaluate(&images, &mut || true)?),
            false => drop(trainer.gradients(&images, indices)?),
        }
        Ok(())
    };
    step(&mut trainer, &indices[..1])?;
    stage("a session, and one example")?;
    step(&mut trainer, &indices)?;
    stage("a step")?;
    for _ in 0..steps {
        step(&mut trainer, &indices)?;
    }
    stage(&format!("{steps} more"))?;
    drop(trainer);
    stage("the session is gone")?;

    let Some(file) = std::fs::read_dir(folder.path())?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "json"))
    else {
        return Ok(());
    };
    if let Some(copy) = text("--time").filter(|copy| copy.ends_with(".json")) {
        std::fs::copy(&file, copy)?;
    }
    let (rows, whole) = times(&file, steps)?;
    println!("\n{:<56} {:>8} {:>10} {:>8}", "ms of a step", "nodes", "ms", "share");
    let named: f64 = rows.iter().map(|(_, time, _)| time).sum();
    let rest = ("between operators".to_owned(), whole - named, 0);
    for (what, time, count) in rows.into_iter().chain([rest, ("all".to_owned(), whole, 0)]) {
        println!("{what:<56} {count:>8} {time:>10.2} {:>7.1}%", time / whole * 100.0);
    }
    Ok(())
}
