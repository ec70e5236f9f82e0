//! `run.toml`: one file that says what to run ([`RunSpec`]), on which model ([`Model`]), over which data
//! ([`DataSpec`]) and how to simulate it on one machine ([`Simulation`]).
//!
//! Command-line overrides edit the parsed document before it is typed, so that a value meets the same checks
//! wherever it came from.

mod aggregation;
pub mod backbone;
pub mod method;
mod model;
mod overrides;
mod privacy;
mod rounds;
mod secure;
mod strategy;
pub mod task;
mod training;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::ValueEnum;
use fedpeft_data::DataSpec;
use fedpeft_protocol::run::{ModelRef, RunSpec};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::Table;

pub use model::{Build, Model, Source};
pub use overrides::{DataOverrides, RunOverrides, SimulationOverrides};

/// Paths that begin with this lie in the asset cache.
const ASSETS_PREFIX: &str = "@assets";

/// The whole file, typed and checked.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// What to run. Its model is named as [`Config::model`] is.
    pub run: RunSpec,
    /// The model.
    pub model: Model,
    /// The data.
    pub data: DataSpec,
    /// How to simulate it.
    pub simulate: Simulation,
}

/// `[simulate]`: how the run is spread over processes of this machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Simulation {
    /// Worker processes that share the clients. Default: one per two clients, at most one per core.
    pub workers: Option<u32>,
    /// Threads of each worker. Default: the cores divided by the workers.
    pub threads: Option<u32>,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// What the evaluator evaluates on.
    pub evaluate_on: EvaluateOn,
    /// Where the exporter serves `/metrics`. Default: a free port of 127.0.0.1.
    pub exporter: Option<std::net::SocketAddr>,
    /// Most LoRA rank of each client, over again, for aggregation lora_product. Default: that of the model.
    pub lora_ranks: Vec<u32>,
    /// Whether workers copy frozen weights into the order in which products read them, which takes memory and saves time, even
    /// for batches of more than 8.
    pub pack_weights: bool,
}

impl Default for Simulation {
    fn default() -> Self {
        Self {
            workers: None,
            threads: None,
            device: "auto".to_owned(),
            evaluate_on: EvaluateOn::default(),
            exporter: None,
            lora_ranks: Vec::new(),
            pack_weights: false,
        }
    }
}

/// Images that the global adapter is evaluated on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum EvaluateOn {
    /// Those of the test file.
    #[default]
    HeldOut,
    /// Those set aside from the train file: choose settings on these.
    Validation,
}

impl EvaluateOn {
    /// The word for it in files and flags.
    pub fn word(self) -> &'static str {
        match self {
            Self::HeldOut => "held-out",
            Self::Validation => "validation",
        }
    }
}

/// A parsed, still untyped file.
#[derive(Debug)]
pub struct Document {
    /// What errors call it.
    name: String,
    /// Relative paths start here.
    folder: PathBuf,
    table: Table,
}

impl Document {
    /// Reads `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("{name} cannot be read"))?;
        let document = Self::parse(&name, &text)?;
        Ok(Self { folder: path.parent().unwrap_or(Path::new("")).to_owned(), ..document })
    }

    /// Parses the text of the file `name`.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let table = text.parse::<Table>().map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
            anyhow!("{name} line {line}: {}", error.message())
        })?;
        let mut document = Self { name: name.to_owned(), folder: PathBuf::new(), table };
        // Flags find them in one place.
        document.make_part_of_run("aggregation")?;
        document.make_part_of_run("privacy")?;
        document.make_part_of_run("secure_aggregation")?;
        Ok(document)
    }

    /// A table that something else than a file holds, called `name` in errors; its relative paths start at `folder`.
    pub fn of_table(name: String, folder: &Path, table: Table) -> Self {
        Self { name, folder: folder.to_owned(), table }
    }

    /// The same file as if it lay in `folder`.
    pub fn in_folder(self, folder: &Path) -> Self {
        Self { folder: folder.to_owned(), ..self }
    }

    /// A file without a line: everything comes from flags.
    pub fn empty() -> Self {
        Self { name: "the command line".to_owned(), folder: PathBuf::new(), table: Table::new() }
    }

    /// Reads `path`, or begins with an empty document where there is none.
    pub fn read_or_empty(path: Option<&Path>) -> Result<Self> {
        path.map_or_else(|| Ok(Self::empty()), Self::read)
    }

    /// Types and checks the whole document.
    pub fn config(mut self, assets: Option<&Path>) -> Result<Config> {
        self.refuse_unknown_sections()?;
        let data = self.data_section(assets)?;
        let mut model = self.model_section(&data, assets)?;
        let run = self.run_section(&model)?;
        if let Source::Build(build) = &mut model.source {
            build.dp_sgd |= run.training.dp_sgd.is_some();
        }
        let simulate = self.section::<Simulation>("simulate")?;
        if simulate.workers == Some(0) || simulate.threads == Some(0) {
            bail!("{}: [simulate] workers and threads must be at least 1", self.name);
        }
        Ok(Config { run, model, data, simulate })
    }

    /// Types and checks only what `data partition` needs; other sections may be there.
    pub fn data(mut self, assets: Option<&Path>) -> Result<DataSpec> {
        self.refuse_unknown_sections()?;
        self.data_section(assets)
    }

    /// Types and checks only what a submission needs; the data is the workers' affair.
    pub fn submission(mut self, assets: Option<&Path>) -> Result<RunSpec> {
        self.refuse_unknown_sections()?;
        let data = self.data_section(assets)?;
        let model = self.model_section(&data, assets)?;
        self.run_section(&model)
    }

    fn refuse_unknown_sections(&self) -> Result<()> {
        const KNOWN: [&str; 8] =
            ["run", "aggregation", "privacy", "secure_aggregation", "stability", "model", "data", "simulate"];
        match self.table.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => bail!(
                "{}: unknown section or key {key:?}: the sections are [{}]",
                self.name,
                KNOWN.join("], [")
            ),
        }
    }

    fn run_section(&mut self, model: &Model) -> Result<RunSpec> {
        self.make_part_of_run("stability")?;
        let table = self.subtable("run")?;
        if table.contains_key("model") {
            bail!("{}: [run] holds the key model: name the model in the section [model]", self.name);
        }
        let reference = ModelRef { name: model.name.clone(), version: model.version };
        table.insert("model".to_owned(), toml::Value::try_from(&reference)?);
        let run: RunSpec = self.section("run")?;
        run.validate().with_context(|| format!("{}: [run]", self.name))?;
        Ok(run)
    }

    /// Moves a section that may stand for itself to where it belongs.
    fn make_part_of_run(&mut self, part: &str) -> Result<()> {
        if let Some(section) = self.table.remove(part)
            && self.subtable("run")?.insert(part.to_owned(), section).is_some()
        {
            bail!("{}: [{part}] and [run.{part}] are one section: keep one of them", self.name);
        }
        Ok(())
    }

    fn model_section(&mut self, data: &DataSpec, assets: Option<&Path>) -> Result<Model> {
        let section: model::Section = self.section("model")?;
        let section = section.with_paths(|path| self.locate(path, assets))?;
        section.resolve(data.label_kind()).with_context(|| format!("{}: [model]", self.name))
    }

    fn data_section(&mut self, assets: Option<&Path>) -> Result<DataSpec> {
        let mut data: DataSpec = self.section("data")?;
        data.locate(|path| self.locate(path, assets))?;
        if let Some(assets) = assets {
            // Workers are told where the files are and need not know the cache.
            data.name_default_files(assets);
        }
        for (field, value) in [("clients", data.clients), ("classes", data.classes)] {
            if value == 0 {
                bail!("{}: [data] {field} must be at least 1, not 0", self.name);
            }
        }
        Ok(data)
    }

    /// Takes a section out of the document and types it; an absent one is typed as an empty one.
    fn section<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        let value = self.table.remove(name).unwrap_or_else(|| Table::new().into());
        value.try_into().map_err(|error: toml::de::Error| {
            let text = error.to_string();
            anyhow!("{}: [{name}] {}", self.name, text.split_whitespace().collect::<Vec<_>>().join(" "))
        })
    }

    fn subtable(&mut self, name: &str) -> Result<&mut Table> {
        let file = &self.name;
        let value = self.table.entry(name).or_insert_with(|| Table::new().into());
        value.as_table_mut().ok_or_else(|| anyhow!("{file}: {name} must be a section, [{name}]"))
    }

    /// Sets the value at a dotted path, making the tables on the way.
    fn set(&mut self, path: &str, value: impl Into<toml::Value>) -> Result<()> {
        let (tables, key) = path.rsplit_once('.').ok_or_else(|| anyhow!("{path} names no section"))?;
        let mut table = &mut self.table;
        for name in tables.split('.') {
            let next = table.entry(name).or_insert_with(|| Table::new().into());
            table = next
                .as_table_mut()
                .ok_or_else(|| anyhow!("{}: {name} in {path} must be a table", self.name))?;
        }
        table.insert(key.to_owned(), value.into());
        Ok(())
    }

    fn get(&self, path: &str) -> Option<&toml::Value> {
        let mut names = path.split('.');
        let first = self.table.get(names.next()?)?;
        names.try_fold(first, |value, name| value.get(name))
    }

    /// Where a path of the file leads: `@assets/...` into the asset cache, a relative one on from the file's
    /// folder.
    fn locate(&self, path: &Path, assets: Option<&Path>) -> Result<PathBuf> {
        match path.strip_prefix(ASSETS_PREFIX) {
            Err(_) => Ok(self.folder.join(path)),
            Ok(rest) => assets.map(|folder| folder.join(rest)).ok_or_else(|| {
                anyhow!("{} lies in the asset cache, which is unknown: set FEDPEFT_ASSETS", path.display())
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [run]
        rounds = 3
        cohort = 4
        training = { local_epochs = 2, optimizer = { kind = "sgd", momentum = 0.9 } }
        [model]
        onnx = "@assets/models/vit.onnx"
        output = "hidden"
        input_size = 28
        method = "bias"
        [data]
        clients = 4
        partition = { kind = "iid" }
        [simulate]
        workers = 2
    "#;

    fn document(text: &str) -> Document {
        Document { name: "run.toml".into(), folder: "/f".into(), table: text.parse().unwrap() }
    }

    fn error(text: &str) -> String {
        crate::output::one_line(&document(text).config(Some(Path::new("/a"))).unwrap_err())
    }

    #[test]
    fn a_whole_file_is_typed() {
        let config = document(FILE).config(Some(Path::new("/a"))).unwrap();
        assert_eq!((config.run.rounds, config.run.training.local_epochs), (3, 2));
        assert_eq!(config.run.model.name.as_str(), "vit-bias");
        let Source::Build(build) = config.model.source else { panic!("not a build") };
        assert_eq!(build.path(), Path::new("/a/models/vit.onnx"));
        assert_eq!((build.task.spec(None).unwrap().width(), config.simulate.workers), (10, Some(2)));
    }

    #[test]
    fn the_documented_example_is_right_and_says_the_defaults() {
        let text = include_str!("../../../../examples/run.toml");
        let config = |text: &str| {
            let config = Document::parse("run.toml", text).unwrap().config(Some(Path::new("/a"))).unwrap();
            serde_json::to_value(config).unwrap()
        };
        // `# key = value` lines are defaults; those with a name or a place of the user's own are not.
        let own = [
            "version",
            "workers",
            "threads",
            "exporter",
            "min_clients",
            "quorum",
            "clip_norm",
            "class_weights",
            "pos_weight",
            "pooling",
            "tokenizer",
            "soft_deadline_seconds",
            "max_update_norm",
            "eligibility",
            "client_holdout",
            "personal",
            "local",
            "uplink",
            "downlink",
        ];
        let is_default = |line: &str| match line.split_once(" = ") {
            None => line.starts_with('['),
            Some((key, _)) => {
                let is_key = key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
                is_key && !own.contains(&key) && !key.ends_with("_images") && !key.ends_with("_labels")
            }
        };
        let uncomment = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if is_default(rest) => rest.to_owned(),
            _ => line.to_owned(),
        };
        let spelt_out: Vec<String> = text.lines().map(uncomment).collect();
        assert_eq!(config(&spelt_out.join("\n")), config(text));
    }

    #[test]
    fn the_runs_of_the_demos_are_right() {
        let demos =
            [include_str!("../../../../xtask/demo.toml"), include_str!("../../../../xtask/text.toml")];
        for (text, classes) in demos.into_iter().zip([10, 5]) {
            let config = Document::parse("demo.toml", text).unwrap().config(Some(Path::new("/a"))).unwrap();
            let Source::Build(build) = config.model.source else { panic!("not a build") };
            assert!(build.path().starts_with("/a/models"));
            assert_eq!((build.task.spec(None).unwrap().width(), config.data.classes), (classes, classes));
        }
    }

    #[test]
    fn mistakes_are_named_with_their_section() {
        assert!(error("[run]\nrounds = 1\ncohort = 1\ncohrot = 2\n[model]\nname = \"m\"").contains("cohrot"));
        assert!(error("[rnu]\n").contains("[simulate]"));
        assert!(error("[run]\nrounds = 1\n[model]\nname = \"m\"").contains("cohort"));
        assert!(error("[run]\nrounds = 0\ncohort = 1\n[model]\nname = \"m\"").contains("rounds must be"));
        assert!(
            error("[data]\npartition = { kind = \"dirichlet\", alpha = -1.0 }")
                .starts_with("run.toml: [data]")
        );
        assert!(error("[data]\nclasses = 0").contains("classes must be at least 1"));
        assert!(error("[model]\nonnx = \"m.onnx\"").contains("output"));
        assert!(error("run = 3\n[model]\nname = \"m\"").contains("must be a section"));
    }

    #[test]
    fn a_submission_needs_no_onnx_file() {
        let text = "[run]\nrounds = 1\ncohort = 1\n[model]\nname = \"m\"\nversion = 3";
        let spec = document(text).submission(None).unwrap();
        assert_eq!((spec.model.name.as_str(), spec.model.version), ("m", Some(3)));
    }
}
