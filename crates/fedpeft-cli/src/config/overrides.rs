//! Flags that take precedence over `run.toml`.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use toml::{Table, Value};

use super::{
    Document, EvaluateOn,
    aggregation::AggregationOverrides,
    method::MethodArgs,
    privacy::PrivacyOverrides,
    rounds::{RoundOverrides, StabilityOverrides},
    secure::SecureOverrides,
    strategy::StrategyOverrides,
    task::TaskArgs,
    training::TrainingOverrides,
};

/// Names the four files have in the Fashion-MNIST and MNIST distributions.
const IDX_FILES: [(&str, &str); 4] = [
    ("data.train_images", "train-images-idx3-ubyte.gz"),
    ("data.train_labels", "train-labels-idx1-ubyte.gz"),
    ("data.test_images", "t10k-images-idx3-ubyte.gz"),
    ("data.test_labels", "t10k-labels-idx1-ubyte.gz"),
];

/// Overrides of `[data]`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Overrides of [data]")]
pub struct DataOverrides {
    /// Clients to deal training examples out to.
    #[arg(long, value_name = "N")]
    clients: Option<u32>,
    /// Training examples of each client; 0 deals all of them out.
    #[arg(long, value_name = "N")]
    samples: Option<u32>,
    /// Concentration of the Dirichlet partition: the smaller, the fewer classes a client sees.
    #[arg(long, value_name = "A", allow_negative_numbers = true, conflicts_with = "partition")]
    alpha: Option<f64>,
    /// How examples are dealt out; `--alpha` says `dirichlet`.
    #[arg(long, value_enum)]
    partition: Option<PartitionKind>,
    /// Shards of each client in a partition by shards.
    #[arg(long, value_name = "N", default_value_t = 2)]
    shards_per_client: u32,
    /// Held-out examples; 0 takes all there are.
    #[arg(long, value_name = "N")]
    eval: Option<u32>,
    /// Training examples set aside for validation.
    #[arg(long, value_name = "N")]
    validation: Option<u32>,
    /// Share of its examples that each client holds back to evaluate its own model on.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    client_holdout: Option<f64>,
    /// Classes of the data and of the head.
    #[arg(long, value_name = "C")]
    classes: Option<u32>,
    /// Folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Seed of the partition, of cohort sampling and of every client's shuffling.
    #[arg(long, value_name = "S")]
    seed: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PartitionKind {
    /// Uniformly at random.
    Iid,
    /// A few classes per client, see `--shards-per-client`.
    Shards,
}

impl DataOverrides {
    /// Edits the document.
    pub fn apply(&self, document: &mut Document) -> Result<()> {
        set(document, "data.clients", self.clients)?;
        set(document, "data.samples_per_client", self.samples)?;
        set(document, "data.eval_examples", self.eval)?;
        set(document, "data.validation_examples", self.validation)?;
        if let Some(share) = self.client_holdout {
            document.set("data.client_holdout", share)?;
        }
        set(document, "data.classes", self.classes)?;
        set(document, "data.seed", self.seed)?;
        // A model section that repeats the number of classes must not contradict the flag.
        if document.get("model.classes").is_some() {
            set(document, "model.classes", self.classes)?;
        }
        if let Some(alpha) = self.alpha {
            document.set("data.partition", kind("dirichlet", [("alpha", alpha.into())]))?;
        }
        match self.partition {
            None => {}
            Some(PartitionKind::Iid) => document.set("data.partition", kind("iid", []))?,
            Some(PartitionKind::Shards) => {
                let shards = Value::from(i64::from(self.shards_per_client));
                document.set("data.partition", kind("shards", [("per_client", shards)]))?;
            }
        }
        if let Some(folder) = &self.data_dir {
            // Flags are relative to where the command runs, the file's paths to the file.
            let folder = std::path::absolute(folder)?;
            for (key, name) in IDX_FILES {
                document.set(key, folder.join(name).to_string_lossy().into_owned())?;
            }
        }
        Ok(())
    }

    /// The seed, which `[run]` has one of as well.
    pub fn seed(&self) -> Option<u32> {
        self.seed
    }
}

/// Overrides of `[run]` and `[model]`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Overrides of [run] and [model]")]
pub struct RunOverrides {
    /// Clients sampled for each round.
    #[arg(long, value_name = "M")]
    cohort: Option<u32>,
    /// Rounds.
    #[arg(long, value_name = "R")]
    rounds: Option<u32>,
    /// Seconds after which a round closes with the updates it has.
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<f64>,
    /// Updates without which a round fails.
    #[arg(long, value_name = "N")]
    quorum: Option<u32>,
    /// ONNX file to build artifacts from.
    #[arg(long, value_name = "FILE")]
    onnx: Option<PathBuf>,
    /// Height and width of the images the model sees.
    #[arg(long, value_name = "PX")]
    input_size: Option<u32>,
    /// Hugging Face folder to build artifacts from.
    #[arg(long, value_name = "DIR", conflicts_with = "onnx")]
    hf: Option<PathBuf>,
    /// Tokens of the texts the model sees.
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<u32>,
    /// tokenizer.json of an ONNX model of texts.
    #[arg(long, value_name = "FILE", conflicts_with = "hf")]
    tokenizer: Option<PathBuf>,
    // Last, because their headings hold for all that follows.
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    training: TrainingOverrides,
    #[command(flatten)]
    strategy: StrategyOverrides,
    #[command(flatten)]
    aggregation: AggregationOverrides,
    #[command(flatten)]
    privacy: PrivacyOverrides,
    #[command(flatten)]
    secure: SecureOverrides,
    #[command(flatten)]
    closing: RoundOverrides,
    #[command(flatten)]
    stability: StabilityOverrides,
}

impl RunOverrides {
    /// Edits the document; `seed` comes from the overrides of the data.
    pub fn apply(&self, document: &mut Document, seed: Option<u32>) -> Result<()> {
        set(document, "run.cohort", self.cohort)?;
        set(document, "run.rounds", self.rounds)?;
        set(document, "run.quorum", self.quorum)?;
        set(document, "run.seed", seed)?;
        if let Some(seconds) = self.deadline {
            document.set("run.round_deadline_seconds", seconds)?;
        }
        self.training.apply(document)?;
        self.strategy.apply(document)?;
        self.aggregation.apply(document)?;
        self.privacy.apply(document)?;
        self.secure.apply(document)?;
        self.closing.apply(document)?;
        self.stability.apply(document)?;
        let given = document.get("model.method").cloned().map(Value::try_into).transpose();
        if let Some(peft) = self.method.over(given.context("model.method")?)? {
            document.set("model.method", Value::try_from(peft)?)?;
        }
        if let Some(onnx) = &self.onnx {
            document.set("model.onnx", std::path::absolute(onnx)?.to_string_lossy().into_owned())?;
        }
        for (key, value) in Table::try_from(&self.task)? {
            document.set(&format!("model.{key}"), value)?;
        }
        if let Some(tokenizer) = &self.tokenizer {
            let path = std::path::absolute(tokenizer)?;
            document.set("model.tokenizer", path.to_string_lossy().into_owned())?;
        }
        if let Some(hf) = &self.hf {
            document.set("model.hf", std::path::absolute(hf)?.to_string_lossy().into_owned())?;
        }
        set(document, "model.max_length", self.max_length)?;
        set(document, "model.input_size", self.input_size)
    }
}

/// Overrides of `[simulate]`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Overrides of [simulate]")]
pub struct SimulationOverrides {
    /// Worker processes that share the clients.
    #[arg(long, value_name = "W")]
    workers: Option<u32>,
    /// Threads of each worker.
    #[arg(long, value_name = "T")]
    threads: Option<u32>,
    /// Device: auto, cpu, cuda or cuda:N.
    #[arg(long)]
    device: Option<String>,
    /// Examples to evaluate on; choose settings on the validation examples.
    #[arg(long, value_enum, value_name = "SPLIT")]
    evaluate_on: Option<EvaluateOn>,
    /// Address of the exporter's /metrics [default: a free port of 127.0.0.1].
    #[arg(long, value_name = "ADDRESS")]
    exporter: Option<SocketAddr>,
    /// Most LoRA rank of each client, over again: 2,4,8; for aggregation lora-product [default: that of the model].
    #[arg(long, value_name = "RANK", value_delimiter = ',')]
    lora_ranks: Vec<u32>,
    /// Faster steps for more memory: see the option of `fedpeft-worker`.
    #[arg(long)]
    pack_weights: bool,
}

impl SimulationOverrides {
    /// Edits the document.
    pub fn apply(&self, document: &mut Document) -> Result<()> {
        set(document, "simulate.workers", self.workers)?;
        set(document, "simulate.threads", self.threads)?;
        if let Some(device) = &self.device {
            document.set("simulate.device", device.as_str())?;
        }
        if let Some(split) = self.evaluate_on {
            document.set("simulate.evaluate_on", split.word())?;
        }
        if let Some(address) = self.exporter {
            document.set("simulate.exporter", address.to_string())?;
        }
        if !self.lora_ranks.is_empty() {
            let ranks: Vec<Value> = self.lora_ranks.iter().map(|rank| i64::from(*rank).into()).collect();
            document.set("simulate.lora_ranks", ranks)?;
        }
        if self.pack_weights {
            document.set("simulate.pack_weights", true)?;
        }
        Ok(())
    }
}

pub(super) fn set(document: &mut Document, path: &str, value: Option<u32>) -> Result<()> {
    value.map_or(Ok(()), |value| document.set(path, i64::from(value)))
}

pub(super) fn kind<const N: usize>(name: &str, fields: [(&str, Value); N]) -> Table {
    let mut table: Table = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    table.insert("kind".to_owned(), name.into());
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpeft_data::PartitionSpec;

    fn document() -> Document {
        let text = "[run]\nrounds = 1\ncohort = 1\n[model]\nname = 'm'\n[data]\npartition = { kind = 'iid' }";
        Document { name: "run.toml".into(), folder: "".into(), table: text.parse().unwrap() }
    }

    #[test]
    fn flags_win_over_the_file() {
        let mut file = document();
        let data = DataOverrides { clients: Some(7), alpha: Some(0.1), seed: Some(5), ..Default::default() };
        data.apply(&mut file).unwrap();
        let run = RunOverrides { cohort: Some(3), ..Default::default() };
        run.apply(&mut file, data.seed()).unwrap();
        let config = file.config(None).unwrap();
        assert_eq!((config.data.clients, config.data.seed, config.run.seed), (7, 5, 5));
        assert!(
            matches!(config.data.partition, PartitionSpec::Dirichlet { alpha } if alpha.get() == 0.1),
            "{:?}",
            config.data.partition
        );
        assert_eq!(config.run.cohort, 3);
    }

    #[test]
    fn bad_values_from_flags_meet_the_checks_of_the_file() {
        let mut file = document();
        DataOverrides { alpha: Some(0.0), ..Default::default() }.apply(&mut file).unwrap();
        let error = crate::output::one_line(&file.config(None).unwrap_err());
        assert!(error.contains("alpha"), "{error}");
    }
}
