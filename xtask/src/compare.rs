//! `cargo xtask compare-methods`: the demo's run with one PEFT method after the other, as a table.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::assets;
use crate::demo::Task;
use crate::process::{cargo, root, run};

/// Methods with the learning rates of the table in the README, for AdamW: the fewer and the larger-scaled the
/// trained values, the larger the rate. Hu et al. (arXiv 2106.09685) and the methods' papers use such rates; they
/// were not searched for here.
const METHODS: [(&str, &str); 10] = [
    ("head", "3e-3"),
    ("bias", "1e-3"),
    ("layernorm", "1e-3"),
    ("lora", "1e-3"),
    ("dora", "1e-3"),
    ("ia3", "5e-3"),
    ("adapter", "1e-3"),
    ("prompt", "3e-3"),
    ("prefix", "3e-3"),
    ("full", "3e-5"),
];

#[derive(Debug, Args)]
pub struct Options {
    /// What is learned.
    #[arg(long, value_enum, default_value_t)]
    task: Task,
    /// Methods to compare, separated by commas; METHOD=RATE sets a learning rate.
    #[arg(long, value_delimiter = ',', value_name = "METHODS")]
    methods: Vec<String>,
    /// Folder for the JSON report of each run; one that is there is not made again.
    #[arg(long, value_name = "DIR", default_value = "target/compare-methods")]
    reports: PathBuf,
    /// Further options of `fedpeft simulate`, for every run.
    #[arg(last = true)]
    simulate: Vec<String>,
}

/// What the table needs of a report.
#[derive(Debug, Deserialize)]
struct Report {
    rounds: Vec<Round>,
    totals: Totals,
}

#[derive(Debug, Deserialize)]
struct Round {
    accuracy: Option<f64>,
    clients: Vec<Client>,
}

#[derive(Debug, Deserialize)]
struct Client {
    examples: Option<u64>,
    bytes_up: u64,
    bytes_down: u64,
    train_seconds: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Totals {
    adapter_bytes: Option<u64>,
    backbone_values: Option<u64>,
}

/// Runs every method that has no report yet, then prints the table.
pub fn compare(options: &Options) -> Result<()> {
    let chosen = options.chosen()?;
    let assets = assets::fetch()?;
    run(&mut cargo(&["build", "--release", "--bins"]))?;
    let folder = root().join(&options.reports).join(options.task.name());
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let mut rows = Vec::new();
    for (i, (method, rate)) in chosen.iter().enumerate() {
        let path = folder.join(format!("{method}-{rate}.json"));
        if !path.exists() {
            eprintln!("method {} of {}: {method}", i + 1, chosen.len());
            let mut simulate =
                cargo(&["run", "--quiet", "--release", "--package", "fedpeft-cli", "--bin", "fedpeft", "--"]);
            simulate.arg("simulate").arg("--config").arg(root().join(options.task.config()));
            simulate.args([format!("--method={method}"), format!("--lr={rate}")]).args(&options.simulate);
            simulate.arg("--json").arg(&path).envs(assets.environment());
            run(&mut simulate)?;
        }
        let text = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let report: Report =
            serde_json::from_slice(&text).with_context(|| format!("{} is no report", path.display()))?;
        rows.push(row(method, rate, &report));
    }
    println!("{}", table(&rows));
    Ok(())
}

impl Options {
    /// Methods and their learning rates.
    fn chosen(&self) -> Result<Vec<(String, String)>> {
        if self.methods.is_empty() {
            return Ok(METHODS.map(|(method, rate)| (method.to_owned(), rate.to_owned())).into());
        }
        let known = |method: &str| METHODS.iter().find(|(name, _)| *name == method).map(|(_, rate)| *rate);
        let chosen = self.methods.iter().map(|text| match text.split_once('=') {
            Some((method, rate)) => Ok((method.to_owned(), rate.to_owned())),
            None => match known(text) {
                Some(rate) => Ok((text.clone(), rate.to_owned())),
                None => bail!("method {text} has no learning rate here: give {text}=RATE"),
            },
        });
        chosen.collect()
    }
}

const HEADINGS: [&str; 7] = [
    "method",
    "learning rate",
    "trained values",
    "of the backbone",
    "KiB up, down per client and round",
    "ms per example, one thread",
    "accuracy by round",
];

fn row(method: &str, rate: &str, report: &Report) -> [String; 7] {
    let values = report.totals.adapter_bytes.unwrap_or(0) / 4;
    let share = 100.0 * values as f64 / report.totals.backbone_values.unwrap_or(0).max(1) as f64;
    // The first round also fetches what is fetched once.
    let later = report.rounds.iter().skip(1).flat_map(|round| &round.clients);
    let mean = |value: fn(&Client) -> f64| {
        let (sum, count) =
            later.clone().fold((0.0, 0u32), |(sum, count), client| (sum + value(client), count + 1));
        sum / f64::from(count.max(1))
    };
    let kib = |bytes: f64| format!("{:.1}", bytes / 1024.0);
    let seconds = mean(|client| client.train_seconds.unwrap_or(0.0));
    let examples = mean(|client| client.examples.unwrap_or(0) as f64);
    let accuracy = |round: &Round| round.accuracy.map_or("-".to_owned(), |accuracy| format!("{accuracy:.2}"));
    [
        format!("`{method}`"),
        rate.to_owned(),
        grouped(values),
        format!("{share:.2} %"),
        format!(
            "{}, {}",
            kib(mean(|client| client.bytes_up as f64)),
            kib(mean(|client| client.bytes_down as f64))
        ),
        format!("{:.1}", 1000.0 * seconds / examples.max(1.0)),
        report.rounds.iter().map(accuracy).collect::<Vec<_>>().join(" "),
    ]
}

/// Thousands apart.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let parts: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|part| std::str::from_utf8(part).ok()).collect();
    parts.join(",")
}

fn table(rows: &[[String; 7]]) -> String {
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let mut lines = vec![line(&HEADINGS.map(str::to_owned)), line(&HEADINGS.map(|_| "---".to_owned()))];
    lines.extend(rows.iter().map(|row| line(row)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let client =
            |bytes_up| Client { examples: Some(200), bytes_up, bytes_down: 1024, train_seconds: Some(2.0) };
        let round = |accuracy, bytes| Round { accuracy, clients: vec![client(bytes), client(bytes)] };
        let totals = Totals { adapter_bytes: Some(4 * 1_234_567), backbone_values: Some(12_345_670) };
        Report {
            rounds: vec![round(Some(0.5), 1 << 20), round(None, 2048), round(Some(0.756), 2048)],
            totals,
        }
    }

    #[test]
    fn the_first_round_is_left_out_of_the_bytes() {
        let row = row("lora", "1e-3", &report());
        assert_eq!(row, ["`lora`", "1e-3", "1,234,567", "10.00 %", "2.0, 1.0", "10.0", "0.50 - 0.76"]);
        assert_eq!(table(&[row]).lines().count(), 3);
    }

    #[test]
    fn rates_can_be_given() {
        let chosen = |methods: &[&str]| {
            let methods = methods.iter().map(|text| (*text).to_owned()).collect();
            Options { task: Task::Image, methods, reports: PathBuf::new(), simulate: Vec::new() }.chosen()
        };
        assert_eq!(chosen(&[]).unwrap().len(), METHODS.len());
        assert_eq!(chosen(&["lora+bias=2e-3"]).unwrap(), [("lora+bias".to_owned(), "2e-3".to_owned())]);
        assert!(chosen(&["lora+bias"]).unwrap_err().to_string().contains("give lora+bias=RATE"));
    }
}
