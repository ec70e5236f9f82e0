//! Figures of the benches of single crates, which are run as `cargo bench` runs them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::figure::{Figure, Reference, Section, Spread};

/// Benches by name.
pub type Benches = BTreeMap<String, PathBuf>;

fn program(benches: &Benches, name: &str) -> Result<Command> {
    let path =
        benches.get(name).with_context(|| format!("bench {name} is not built: use `cargo xtask bench`"))?;
    let mut command = Command::new(path);
    command.arg("--bench");
    Ok(command)
}

fn finish(command: &mut Command, name: &str) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start bench {name}"))?;
    if !output.status.success() {
        bail!("bench {name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What criterion keeps of a benchmark.
#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}

#[derive(Deserialize)]
struct Benchmark {
    group_id: String,
    function_id: Option<String>,
    value_str: Option<String>,
    throughput: Option<BTreeMap<String, f64>>,
}

/// Milliseconds of every benchmark of a bench, by group, function and value, and its bytes where it says them.
fn criterion(benches: &Benches, name: &str, filter: Option<&str>) -> Result<Vec<(Benchmark, Spread)>> {
    let home = tempfile::tempdir()?;
    let mut command = program(benches, name)?;
    command.args(filter).env("CRITERION_HOME", home.path());
    finish(&mut command, name)?;
    let mut found = Vec::new();
    gather(home.path(), &mut found)?;
    found.sort_by(|(a, _), (b, _)| key(a).cmp(&key(b)));
    Ok(found)
}

fn key(benchmark: &Benchmark) -> (&str, Option<&str>, Option<&str>) {
    (&benchmark.group_id, benchmark.function_id.as_deref(), benchmark.value_str.as_deref())
}

fn gather(folder: &Path, found: &mut Vec<(Benchmark, Spread)>) -> Result<()> {
    let (benchmark, sample) = (folder.join("benchmark.json"), folder.join("sample.json"));
    if folder.ends_with("new") && benchmark.exists() {
        let benchmark = serde_json::from_slice(&std::fs::read(benchmark)?)?;
        let Sample { iters, times } = serde_json::from_slice(&std::fs::read(sample)?)?;
        let each = times.iter().zip(&iters).map(|(nanoseconds, times)| nanoseconds / times / 1e6);
        found.push((benchmark, Spread::of(each.collect())));
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            gather(&path, found)?;
        }
    }
    Ok(())
}

fn bytes(benchmark: &Benchmark) -> f64 {
    benchmark.throughput.iter().flatten().next().map_or(0.0, |(_, count)| *count)
}

/// Encoding and decoding, each beside a copy of the same values.
pub fn codec(benches: &Benches, quick: bool) -> Result<Vec<Figure>> {
    // The size of the `bias` adapter of a ViT-S alone, or one beyond all caches as well.
    let all = criterion(benches, "codec", quick.then_some("^57610/"))?;
    let copies: BTreeMap<&str, Spread> = all
        .iter()
        .filter(|(benchmark, _)| benchmark.function_id.as_deref() == Some("memcpy"))
        .map(|(benchmark, spread)| (benchmark.group_id.as_str(), *spread))
        .collect();
    let others = all.iter().filter(|(benchmark, _)| benchmark.function_id.as_deref() != Some("memcpy"));
    let figures = others.filter_map(|(benchmark, spread)| {
        let function = benchmark.function_id.as_deref().unwrap_or_default();
        let (what, pipeline) = match &benchmark.value_str {
            Some(pipeline) => (function, pipeline.as_str()),
            None => function.split_once('/')?,
        };
        let figure = Figure::new(Section::Codec, pipeline, what).at(bytes(benchmark)).is(*spread, "ms");
        Some(figure.beside("memcpy", *copies.get(benchmark.group_id.as_str())?))
    });
    Ok(figures.collect())
}

/// Adding and dividing, each beside a copy of the same bytes.
pub fn accumulator(benches: &Benches) -> Result<Vec<Figure>> {
    let all = criterion(benches, "accumulator", None)?;
    let copy = |size: f64| {
        let is_it = |(benchmark, _): &&(Benchmark, Spread)| {
            benchmark.function_id.as_deref() == Some("memcpy") && bytes(benchmark) == size
        };
        all.iter().find(is_it).map(|(_, spread)| *spread)
    };
    let figures = all.iter().filter_map(|(benchmark, spread)| {
        let what = benchmark.function_id.as_deref().filter(|what| *what != "memcpy")?;
        let size = bytes(benchmark);
        let figure = Figure::new(Section::Accumulator, what, "one update").at(size).is(*spread, "ms");
        Some(figure.beside("memcpy", copy(size)?))
    });
    Ok(figures.collect())
}

/// A row of the bench of training steps.
#[derive(Deserialize)]
struct Step {
    name: String,
    ms_per_image: f64,
    ms_low: f64,
    ms_high: f64,
    rounds: usize,
    #[serde(flatten)]
    beside_forward: Ratio,
    /// Beside the forward pass with the tokens or modules of the method, where it adds some.
    own: Option<Ratio>,
}

#[derive(Deserialize, Clone, Copy)]
struct Ratio {
    ratio: f64,
    low: f64,
    high: f64,
}

/// Training steps beside the forward pass, at some resolutions and batches.
pub fn train(benches: &Benches, quick: bool) -> Result<Vec<Figure>> {
    let (few, many) = if quick { ("3", "5") } else { ("7", "11") };
    let all: [(u32, u32, &str, &[&str]); 4] = [
        (56, 32, many, &["--steps"]),
        (56, 8, few, &["--steps", "--only", "bias"]),
        (28, 32, few, &["--steps", "--only", "bias"]),
        (112, 32, few, &["--steps", "--only", "bias"]),
    ];
    let mut figures = Vec::new();
    for (size, batch, rounds, more) in all {
        let mut command = program(benches, "train_step")?;
        command.args(["--json", "--size", &size.to_string(), "--batch", &batch.to_string()]);
        let text = finish(command.args(["--rounds", rounds]).args(more), "train_step")?;
        let steps: Vec<Step> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| format!("bench train_step said {text:?}"))?;
        let forward = steps.iter().find(|step| step.name == "forward").map(spread);
        for step in &steps {
            let what = format!("{size} px, batch {batch}");
            let mut figure = |what: String, name: &str, ratio: Ratio, value: Option<Spread>| {
                let figure = Figure::new(Section::Train, &step.name, what).at(tokens(size));
                let mut figure = figure.is(spread(step), "ms/image");
                if let Some(value) = value {
                    figure.reference = Some(Reference { name: name.into(), value });
                    let Ratio { ratio: median, low, high } = ratio;
                    figure.ratio = Some(Spread { median, low, high, count: step.rounds });
                }
                figures.push(figure);
            };
            figure(what.clone(), "forward", step.beside_forward, forward);
            let name = format!("forward of {}", step.name);
            let own = steps.iter().find(|other| other.name == name).map(spread);
            if let Some(ratio) = step.own {
                figure(format!("{what}, beside its own"), &name, ratio, own);
            }
        }
    }
    Ok(figures)
}

/// Patches of 14 by 14 pixels, and the class token.
fn tokens(size: u32) -> f64 {
    f64::from((size / 14).pow(2) + 1)
}

fn spread(step: &Step) -> Spread {
    Spread { median: step.ms_per_image, low: step.ms_low, high: step.ms_high, count: step.rounds }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_criterion_keeps_is_found() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("57610/encode_int8/new");
        std::fs::create_dir_all(&folder).unwrap();
        let benchmark = r#"{"group_id":"57610","function_id":"encode","value_str":"int8","throughput":{"Bytes":230440},
            "full_id":"","directory_name":"","title":""}"#;
        std::fs::write(folder.join("benchmark.json"), benchmark).unwrap();
        let sample = r#"{"sampling_mode":"Linear","iters":[1.0,2.0],"times":[1000000.0,4000000.0]}"#;
        std::fs::write(folder.join("sample.json"), sample).unwrap();
        let mut found = Vec::new();
        gather(home.path(), &mut found).unwrap();
        let (benchmark, spread) = &found[0];
        assert_eq!((found.len(), bytes(benchmark)), (1, 230_440.0));
        assert_eq!((spread.low, spread.median, spread.high), (1.0, 1.5, 2.0));
    }
}
