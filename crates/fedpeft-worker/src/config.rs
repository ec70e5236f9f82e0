//! Options of the worker.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use clap::{Parser, ValueEnum, ValueHint};
use fedpeft_data::DataSpec;
use fedpeft_runtime::{Device, Runtime};
use fedpeft_service::{Common, CommonArgs};
use serde::{Deserialize, Deserializer, Serialize};

/// Host clients: wait for tasks, train or evaluate the adapter on local data, send updates.
///
/// Training examples never leave this process; only adapters do.
///
/// Examples:
///   fedpeft-worker --clients 5                       clients client-000 to client-004
///   fedpeft-worker --clients 5 --first 5             client-005 to client-009
///   fedpeft-worker --client hospital-a --first 3     one client with part 3 of the data
///   fedpeft-worker --evaluate                        only an evaluator, on the held-out images
#[derive(Debug, Parser, Serialize)]
#[command(version, verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    common: CommonArgs,
    /// Clients to host, named <prefix><number>; client number i holds part i of the data
    #[arg(long, env = "FEDPEFT_CLIENTS", value_name = "N", conflicts_with = "client")]
    #[serde(skip_serializing_if = "Option::is_none")]
    clients: Option<u32>,
    /// What names of numbered clients begin with [default: client-]
    #[arg(long, env = "FEDPEFT_CLIENTS_PREFIX", value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    clients_prefix: Option<String>,
    /// Clients to host, by name
    #[arg(long, env = "FEDPEFT_CLIENT", value_name = "NAME", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    client: Vec<String>,
    /// Part of the data that the first client holds; each other holds the next [default: 0]
    #[arg(long, env = "FEDPEFT_FIRST", value_name = "PART")]
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<u32>,
    /// Also host a client that evaluates on held-out data, of this name [default name: evaluator]
    #[arg(long, env = "FEDPEFT_EVALUATE", value_name = "NAME", num_args = 0..=1, default_missing_value = "evaluator")]
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluate: Option<String>,
    /// What the evaluator evaluates on [default: held-out]
    #[arg(long, env = "FEDPEFT_EVALUATE_ON", value_name = "SPLIT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluate_on: Option<Split>,
    /// TOML file describing the data, at its top level or under [data]; in the configuration file, a [data]
    /// table may stand here [default: Fashion-MNIST of the asset cache]
    #[arg(long, env = "FEDPEFT_DATA", value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// Folder for artifacts, kept between runs and shared by workers [default: ~/.cache/fedpeft/worker]
    #[arg(long, env = "FEDPEFT_CACHE", value_name = "DIR", value_hint = ValueHint::DirPath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<PathBuf>,
    /// Folder for checkpoints of trainings in progress, kept so that a worker that is killed or stopped goes on
    /// where it was, and for the tensors that a run keeps at its clients (training.local), in files that `fedpeft
    /// export --local` reads [default: beside --cache, named <cache>-state]
    #[arg(long, env = "FEDPEFT_STATE", value_name = "DIR", value_hint = ValueHint::DirPath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<PathBuf>,
    /// Seconds between two checkpoints of a training; longer where writing one takes more than a twentieth of
    /// that; 0 keeps none [default: 30]
    #[arg(long, env = "FEDPEFT_CHECKPOINT_SECONDS", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_seconds: Option<u32>,
    /// Days after which what clients kept of a run that goes on no more is forgotten; 0 means never [default: 90]
    #[arg(long, env = "FEDPEFT_MEMORY_DAYS", value_name = "DAYS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_days: Option<u32>,
    /// Largest checkpoint, in MiB; each client has one at most [default: 4096]
    #[arg(long, env = "FEDPEFT_STATE_MIB", value_name = "MIB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    state_mib: Option<u32>,
    /// What to tell of the hosted clients, for a run's eligibility rules: site=eu; may be repeated. In the
    /// configuration file also a table, label = { site = "eu" }
    #[arg(long, env = "FEDPEFT_LABEL", value_name = "NAME=VALUE", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    label: Vec<String>,
    /// Most LoRA rank that the hosted clients train and send, for runs with aggregation lora_product; of several, the
    /// client with part i of the data gets the i-th, over again: 2,4,8 [default: the run's rank]
    #[arg(long, env = "FEDPEFT_LORA_RANK", value_name = "RANK", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lora_rank: Vec<u32>,
    /// Let runs simulate drop-outs, crashes and delays of the hosted clients, as `fedpeft simulate` does
    #[arg(long, env = "FEDPEFT_SIMULATE_FAULTS")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    simulate_faults: bool,
    /// Folder with <client>.identity for each hosted client, by which others know it in secure aggregation, as `fedpeft
    /// auth enroll` makes it [default: new ones at every start]
    #[arg(long, env = "FEDPEFT_IDENTITIES", value_name = "DIR", value_hint = ValueHint::DirPath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    identities: Option<PathBuf>,
    /// File that lists the clients that may be in a secure sum with the hosted ones, a name and an identity a line, from
    /// the operator and not from the aggregator [default: the aggregator's word is taken]
    #[arg(long, env = "FEDPEFT_ROSTER", value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    roster: Option<PathBuf>,
    /// Public key of the operator, which must have signed --roster [default: its signature is not checked]
    #[arg(long, env = "FEDPEFT_OPERATOR", value_name = "KEY", requires = "roster")]
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
    /// Train only in runs with secure aggregation: no update leaves this process but under masks
    #[arg(long, env = "FEDPEFT_REQUIRE_SECURE_AGGREGATION")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    require_secure_aggregation: bool,
    /// Take part in secure sums only if their noise is at least so many clipping norms, even without the noise of clients
    /// that may collude with the aggregator [default: no noise is asked for]
    #[arg(
        long,
        env = "FEDPEFT_LEAST_NOISE_MULTIPLIER",
        value_name = "Z",
        requires = "require_secure_aggregation"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    least_noise_multiplier: Option<f64>,
    /// Device to compute on: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, env = "FEDPEFT_DEVICE", value_name = "DEVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Threads to compute with; 0 means one per core [default: 0]
    #[arg(long, env = "FEDPEFT_THREADS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<u16>,
    /// Copy frozen weights into the order in which products read them, once for each direction: steps of training take less
    /// time, a twentieth at batch 32, for twice the memory of the backbone; batches of up to 8 do so in any case (processor
    /// only)
    #[arg(long, env = "FEDPEFT_PACK_WEIGHTS")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pack_weights: bool,
    /// Memory for what the frozen backbone made of examples, for all hosted clients together, in runs with
    /// training.cache_features [default: 512]
    #[arg(long, env = "FEDPEFT_FEATURE_CACHE_MIB", value_name = "MIB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_cache_mib: Option<u32>,
    /// ONNX Runtime library, version 1.22 or newer [default: looked for in the asset cache and the system]
    #[arg(long, env = "FEDPEFT_ORT_LIB", value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ort_lib: Option<PathBuf>,
    /// Name of this process, for people [default: <host>-<process id>]
    #[arg(long, env = "FEDPEFT_WORKER", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    /// Load ONNX Runtime, settle the device, print both as JSON, and end: what `fedpeft doctor` asks
    #[arg(long)]
    #[serde(skip)]
    pub(crate) check: bool,
    /// Seconds that the task in progress may take after SIGTERM before it is kept and handed back; the worker ends
    /// at most ten seconds later. A second signal ends it at once [default: 20]
    #[arg(long, env = "FEDPEFT_DRAIN_SECONDS", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_seconds: Option<u32>,
}

impl Args {
    /// What `--check` finds, where that is asked for: the library in use and the device that the options lead to, as one
    /// line of JSON, or why there is none.
    pub fn check(&self) -> Option<Result<String, String>> {
        self.check.then(|| {
            let device = self.device.as_deref().unwrap_or("auto").parse::<Device>();
            let device = device.map_err(|error| error.to_string())?;
            let runtime = Runtime::load(self.ort_lib.as_deref()).map_err(|error| error.to_string())?;
            let chosen = runtime.choose(device).map_err(|error| error.to_string())?;
            let found = serde_json::json!({"library": runtime.library(), "device": chosen.to_string()});
            Ok(found.to_string())
        })
    }
}

impl AsRef<CommonArgs> for Args {
    fn as_ref(&self) -> &CommonArgs {
        &self.common
    }
}

/// The options, settled.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Options of every service.
    #[serde(flatten)]
    pub common: Common,
    /// Numbered clients.
    #[serde(default)]
    pub clients: u32,
    /// Prefix of their names.
    #[serde(default = "prefix")]
    pub clients_prefix: String,
    /// Named clients.
    #[serde(default)]
    pub client: Vec<String>,
    /// Part of the data that the first client holds.
    #[serde(default)]
    pub first: u32,
    /// Name of the evaluator.
    #[serde(default)]
    pub evaluate: Option<String>,
    /// Its data.
    #[serde(default)]
    pub evaluate_on: Split,
    /// The data.
    #[serde(default)]
    pub data: DataSource,
    /// Folder for artifacts.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// Folder for checkpoints.
    #[serde(default)]
    pub state: Option<PathBuf>,
    /// Seconds between checkpoints; 0 means none.
    #[serde(default = "checkpoint_seconds")]
    pub checkpoint_seconds: u32,
    /// Days that what clients keep of runs is kept; 0 means for ever.
    #[serde(default = "memory_days")]
    pub memory_days: u32,
    /// MiB of the largest checkpoint.
    #[serde(default = "state_mib")]
    pub state_mib: u32,
    /// What is told of the hosted clients.
    #[serde(default, deserialize_with = "crate::labels::deserialize")]
    pub label: BTreeMap<String, String>,
    /// Most LoRA ranks.
    #[serde(default)]
    pub lora_rank: Vec<u32>,
    /// Whether runs may simulate faults.
    #[serde(default)]
    pub simulate_faults: bool,
    /// Folder of identities.
    #[serde(default)]
    pub identities: Option<PathBuf>,
    /// Clients that may be in a secure sum.
    #[serde(default)]
    pub roster: Option<PathBuf>,
    /// Who signed that list.
    #[serde(default)]
    pub operator: Option<String>,
    /// Whether plain updates are refused.
    #[serde(default)]
    pub require_secure_aggregation: bool,
    /// Noise that secure sums must have.
    #[serde(default)]
    pub least_noise_multiplier: Option<f64>,
    /// Device.
    #[serde(default, deserialize_with = "device")]
    pub device: Device,
    /// Threads; 0 means one per core.
    #[serde(default)]
    pub threads: u16,
    /// Whether frozen weights are copied into the order in which products read them.
    #[serde(default)]
    pub pack_weights: bool,
    /// Memory for features.
    #[serde(default = "feature_cache_mib")]
    pub feature_cache_mib: u32,
    /// ONNX Runtime library.
    #[serde(default)]
    pub ort_lib: Option<PathBuf>,
    /// Name of this process.
    #[serde(default)]
    pub worker: Option<String>,
    /// Seconds for the task in progress after SIGTERM.
    #[serde(default = "drain_seconds")]
    pub drain_seconds: u32,
}

impl AsRef<Common> for Config {
    fn as_ref(&self) -> &Common {
        &self.common
    }
}

fn feature_cache_mib() -> u32 {
    512
}

fn prefix() -> String {
    "client-".to_owned()
}

fn checkpoint_seconds() -> u32 {
    30
}

fn memory_days() -> u32 {
    90
}

fn state_mib() -> u32 {
    4096
}

fn drain_seconds() -> u32 {
    20
}

fn device<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Device, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// Data to evaluate on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Images of the held-out file.
    #[default]
    HeldOut,
    /// Training images that no client holds.
    Validation,
}

/// Where the description of the data is.
#[derive(Debug, Clone, PartialEq)]
pub enum DataSource {
    /// Here.
    Inline(Box<DataSpec>),
    /// In a TOML file, at its top level or under `[data]`.
    File(PathBuf),
}

impl Default for DataSource {
    fn default() -> Self {
        Self::Inline(Box::default())
    }
}

impl<'de> Deserialize<'de> for DataSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(path) => Ok(Self::File(path.into())),
            table => table.try_into().map(|spec| Self::Inline(Box::new(spec))).map_err(D::Error::custom),
        }
    }
}

/// Options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The description of the data cannot be read.
    #[error("data file {path}: {reason}", path = path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no folder for the cache.
    #[error("there is no home folder to keep artifacts in: give --cache")]
    NoCache,
}

impl DataSource {
    /// The description, read from its file. Relative paths in a file are relative to it.
    pub fn read(&self) -> Result<DataSpec, ConfigError> {
        match self {
            Self::Inline(spec) => Ok((**spec).clone()),
            Self::File(path) => {
                let fail = |reason: String| ConfigError::Data { path: path.clone(), reason };
                let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
                let one_line =
                    |error: toml::de::Error| fail(error.message().lines().collect::<Vec<_>>().join(" "));
                let mut table: toml::Table = toml::from_str(&text).map_err(one_line)?;
                let section = table.remove("data").unwrap_or(toml::Value::Table(table));
                let mut spec: DataSpec = section.try_into().map_err(one_line)?;
                let folder = path.parent().unwrap_or(Path::new(""));
                let located = spec.locate(|file| Ok::<_, std::convert::Infallible>(folder.join(file)));
                let Ok(()) = located;
                Ok(spec)
            }
        }
    }
}

impl Config {
    /// Folder for artifacts.
    pub fn cache(&self) -> Result<PathBuf, ConfigError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let default = || {
            let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
            Some(base.join("fedpeft/worker"))
        };
        self.cache.clone().or_else(default).ok_or(ConfigError::NoCache)
    }

    /// Folder for checkpoints: another than that for artifacts, which may be emptied at any time.
    pub fn state(&self) -> Result<PathBuf, ConfigError> {
        if let Some(folder) = &self.state {
            return Ok(folder.clone());
        }
        let cache = self.cache()?;
        let name = cache.file_name().map_or_else(|| "fedpeft".into(), |name| name.to_string_lossy());
        Ok(cache.with_file_name(format!("{name}-state")))
    }

    /// Name of this process.
    pub fn worker(&self) -> String {
        self.worker.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let host = host.trim();
            format!("{}-{}", if host.is_empty() { "worker" } else { host }, std::process::id())
        })
    }
}

#[cfg(test)]
mod tests {
    use fedpeft_data::{IdxFiles, Source};

    use super::*;
    use fedpeft_service::config::load;

    fn parse(arguments: &[&str]) -> Config {
        let args = Args::parse_from([&["fedpeft-worker"], arguments].concat());
        load(&args, None).unwrap()
    }

    #[test]
    fn defaults_and_flags() {
        let config = parse(&["--clients", "3"]);
        assert_eq!(
            (config.clients, config.clients_prefix.as_str(), config.device),
            (3, "client-", Device::Auto)
        );
        assert_eq!(config.evaluate, None);
        assert_eq!(config.data, DataSource::default());
        let config =
            parse(&["--client", "a,b", "--evaluate", "--device", "cuda:1", "--evaluate-on", "validation"]);
        assert_eq!(config.client, ["a", "b"]);
        assert_eq!(config.evaluate.as_deref(), Some("evaluator"));
        assert_eq!((config.device, config.evaluate_on), (Device::Cuda(1), Split::Validation));
    }

    #[test]
    fn data_comes_from_a_file_or_a_table() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        std::fs::write(&file, "[run]\nrounds = 3\n[data]\nclients = 4\ntrain_images = \"x.gz\"").unwrap();
        let config = parse(&["--data", file.to_str().unwrap()]);
        let spec = config.data.read().unwrap();
        let files = IdxFiles { train_images: Some(folder.path().join("x.gz")), ..IdxFiles::default() };
        assert_eq!((spec.clients, spec.source), (4, Source::Idx(files)));

        std::fs::write(&file, "clients = 2\n[data]\nclients = 7").unwrap();
        let args = Args::parse_from(["fedpeft-worker"]);
        let config: Config = load(&args, Some(&file)).unwrap();
        assert_eq!((config.clients, config.data.read().unwrap().clients), (2, 7));

        std::fs::write(&file, "[data]\nclinets = 7").unwrap();
        let error = parse(&["--data", file.to_str().unwrap()]).data.read().unwrap_err().to_string();
        assert!(error.contains("clinets") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn labels_come_from_flags_or_a_table() {
        let config = parse(&["--label", "site=eu,tier=a", "--label", "x=1=2"]);
        let labels = config.label.iter().map(|(name, value)| format!("{name}:{value}"));
        assert_eq!(labels.collect::<Vec<_>>(), ["site:eu", "tier:a", "x:1=2"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("worker.toml");
        std::fs::write(&file, "[label]\nsite = \"us\"").unwrap();
        let config: Config = load(&Args::parse_from(["fedpeft-worker"]), Some(&file)).unwrap();
        assert_eq!(config.label["site"], "us");
        for bad in ["site", "=eu", "a b=c", "site=eu,site=us"] {
            let args = Args::parse_from(["fedpeft-worker", "--label", bad]);
            let error = load::<_, Config>(&args, None).unwrap_err().to_string();
            assert!(error.contains("label") && !error.contains('\n'), "{bad}: {error}");
        }
    }

    #[test]
    fn checkpoints_lie_beside_the_cache() {
        let config = parse(&["--cache", "/a/cache"]);
        assert_eq!(config.state().unwrap(), Path::new("/a/cache-state"));
        assert_eq!((config.checkpoint_seconds, config.simulate_faults), (30, false));
        let config = parse(&["--state", "/b", "--checkpoint-seconds", "0", "--simulate-faults"]);
        assert_eq!(config.state().unwrap(), Path::new("/b"));
        assert_eq!((config.checkpoint_seconds, config.simulate_faults), (0, true));
    }

    #[test]
    fn bad_devices_are_one_line() {
        let args = Args::parse_from(["fedpeft-worker", "--device", "gpu"]);
        let error = load::<_, Config>(&args, None).unwrap_err().to_string();
        assert!(error.contains("cuda:N"), "{error}");
    }
}
