//! `[model]`: an ONNX file or a Hugging Face folder to build artifacts from, an artifact folder, or a name in
//! the registry.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use fedpeft_artifacts::{BuildOptions, Storage};
use fedpeft_data::LabelKind;
use fedpeft_peft::Peft;
use fedpeft_protocol::ModelName;
use serde::{Deserialize, Serialize};

use super::{
    backbone::{Backbone, BackboneKeys},
    task::{PoolingArg, Task, TaskArgs, TaskKind},
};

/// The model of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// Its name in the registry.
    pub name: ModelName,
    /// Its version there, where one is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// Where it comes from.
    #[serde(flatten)]
    pub source: Source,
}

/// Where a model comes from.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Source {
    /// Artifacts are built from an ONNX file.
    Build(Build),
    /// Artifacts are there.
    Artifacts {
        /// Their folder.
        artifacts: PathBuf,
    },
    /// The registry has it.
    Published {},
}

/// How artifacts are built.
#[derive(Debug, Clone, Serialize)]
pub struct Build {
    /// What from.
    #[serde(flatten)]
    pub backbone: Backbone,
    /// What is learned.
    pub task: Task,
    /// PEFT method.
    pub method: Peft,
    /// Seed of the random part of new tensors.
    pub seed: u64,
    /// How frozen weights are stored.
    pub storage: Storage,
    /// Whether the artifacts can clip the gradient of every example, for `dp_sgd`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dp_sgd: bool,
}

impl Build {
    /// The file or folder that is read.
    pub fn path(&self) -> &Path {
        self.backbone.path()
    }

    /// The options of the builder.
    pub fn options(&self) -> Result<BuildOptions> {
        let options = self.backbone.options(&self.task, self.method.clone(), self.seed)?;
        Ok(BuildOptions { storage: self.storage, dp_sgd: self.dp_sgd, ..options })
    }
}

/// The section as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    name: Option<ModelName>,
    version: Option<u32>,
    artifacts: Option<PathBuf>,
    onnx: Option<PathBuf>,
    output: Option<String>,
    input_size: Option<u32>,
    hf: Option<PathBuf>,
    max_length: Option<u32>,
    tokenizer: Option<PathBuf>,
    classes: Option<u32>,
    task: Option<TaskKind>,
    label_smoothing: Option<f32>,
    class_weights: Option<Vec<f32>>,
    pos_weight: Option<Vec<f32>>,
    pooling: Option<PoolingArg>,
    method: Option<Peft>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    storage: Storage,
    #[serde(default)]
    dp_sgd: bool,
}

impl Section {
    /// Replaces paths by where they lead.
    pub fn with_paths(mut self, locate: impl Fn(&Path) -> Result<PathBuf>) -> Result<Self> {
        self.artifacts = self.artifacts.as_deref().map(&locate).transpose()?;
        self.onnx = self.onnx.as_deref().map(&locate).transpose()?;
        self.hf = self.hf.as_deref().map(&locate).transpose()?;
        self.tokenizer = self.tokenizer.as_deref().map(&locate).transpose()?;
        Ok(self)
    }

    /// Decides between the sources; `labels` is what the data has.
    pub fn resolve(self, labels: LabelKind) -> Result<Model> {
        if let (Some(wrong), LabelKind::Classes(classes)) = (self.classes, labels)
            && wrong != classes
        {
            bail!("classes is {wrong}, but the data has {classes}: make them equal");
        }
        let keys = BackboneKeys {
            onnx: self.onnx,
            hf: self.hf,
            output: self.output,
            input_size: self.input_size,
            max_length: self.max_length,
            tokenizer: self.tokenizer,
        };
        let task = TaskArgs {
            task: self.task,
            label_smoothing: self.label_smoothing,
            class_weights: self.class_weights,
            pos_weight: self.pos_weight,
            pooling: self.pooling,
        };
        let source = match (keys.resolve()?, self.artifacts) {
            (Some(_), Some(_)) => bail!("artifacts are given beside what to build them from: keep one"),
            (Some(backbone), None) => {
                let method =
                    self.method.ok_or_else(|| anyhow!("method is missing: it says what is trained"))?;
                let (seed, storage, dp_sgd) = (self.seed, self.storage, self.dp_sgd);
                let task = task.of_data(labels)?;
                Source::Build(Build { backbone, task, method, seed, storage, dp_sgd })
            }
            (None, _) if self.method.is_some() || task != TaskArgs::default() => {
                bail!("method and task are fixed in artifacts: give onnx or hf to build others")
            }
            (None, Some(artifacts)) => Source::Artifacts { artifacts },
            (None, None) => Source::Published {},
        };
        let name = match (self.name, &source) {
            (Some(name), _) => name,
            (None, Source::Build(build)) => default_name(build.path(), Some(&build.method.to_string()))?,
            (None, Source::Artifacts { artifacts }) => default_name(artifacts, None)?,
            (None, Source::Published {}) => {
                bail!("none of onnx, hf, artifacts and name is given: one of them says what to train")
            }
        };
        Ok(Model { name, version: self.version, source })
    }
}

/// A registry name made of a file's or folder's name and the method.
fn default_name(path: &Path, method: Option<&str>) -> Result<ModelName> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let stem = name.strip_suffix(".onnx").unwrap_or(&name);
    let text: String = method.map_or_else(|| stem.to_owned(), |method| format!("{stem}-{method}"));
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    Ok(ModelName::new(text.chars().map(allowed).take(64).collect::<String>())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_what_files_are_called() {
        assert_eq!(default_name(Path::new("a/vit.s.onnx"), Some("bias")).unwrap().as_str(), "vit-s-bias");
        assert_eq!(default_name(Path::new("/x/art"), None).unwrap().as_str(), "art");
    }

    #[test]
    fn contradictions_are_refused() {
        let section = |text: &str| toml::from_str::<Section>(text).unwrap().resolve(LabelKind::Classes(10));
        assert!(section("onnx = 'a'\nartifacts = 'b'").is_err());
        assert!(section("artifacts = 'b'\nmethod = 'bias'").is_err());
        assert!(section("artifacts = 'b'\nclasses = 9").is_err());
        assert!(section("onnx = 'a'\nhf = 'b'").is_err());
        assert!(section("hf = 'b'\nmethod = 'bias'\ninput_size = 28").is_err());
        assert!(section("name = 'b'\nmax_length = 8").is_err());
        assert!(section("artifacts = 'b'\nlabel_smoothing = 0.1").is_err());
        assert!(section("hf = 'b'\nmethod = 'bias'\ntask = 'regression'").is_err());
        assert!(section("hf = 'b'\nmethod = 'bias'\npos_weight = [1.0]").is_err());
        assert!(section("").is_err());
        assert!(matches!(section("name = 'm'").unwrap().source, Source::Published {}));
        assert!(matches!(section("artifacts = 'b'").unwrap().source, Source::Artifacts { .. }));
    }

    #[test]
    fn the_task_is_what_the_data_is_labelled_with() {
        let task = |labels| {
            let section: Section = toml::from_str("hf = 'bert.base'\nmethod = 'bias'").unwrap();
            section.resolve(labels).map(|model| match model.source {
                Source::Build(build) => (model.name.to_string(), build.task.name()),
                _ => panic!("not a build"),
            })
        };
        assert_eq!(task(LabelKind::Classes(3)).unwrap(), ("bert-base-bias".to_owned(), "classification"));
        assert_eq!(task(LabelKind::MultiLabel(3)).unwrap().1, "multi-label");
        assert_eq!(task(LabelKind::Regression(1)).unwrap().1, "regression");
        assert_eq!(task(LabelKind::Tokens).unwrap().1, "causal-lm");
    }
}
