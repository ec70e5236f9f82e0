//! `[model]`: an ONNX file or a Hugging Face folder to build artifacts from, an artifact folder, or a name in
//! the registry.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use fedpeft_artifacts::{BuildOptions, manifest::TaskSpec};
use fedpeft_data::LabelKind;
use fedpeft_peft::Peft;
use fedpeft_protocol::ModelName;
use fedpeft_text::Tokenizer;
use serde::{Deserialize, Serialize};

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
    pub task: TaskSpec,
    /// PEFT method.
    pub method: Peft,
    /// Seed of the random part of new tensors.
    pub seed: u64,
}

/// What artifacts are built from.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Backbone {
    /// An export of a model of images.
    Onnx {
        /// Exported model.
        onnx: PathBuf,
        /// Tensor to cut it at.
        output: String,
        /// Height and width of the images.
        input_size: u32,
    },
    /// A Hugging Face folder of a model of texts.
    HuggingFace {
        /// The folder.
        hf: PathBuf,
        /// Tokens of a text; longer ones are cut.
        max_length: u32,
    },
}

impl Build {
    /// The file or folder that is read.
    pub fn path(&self) -> &Path {
        match &self.backbone {
            Backbone::Onnx { onnx: path, .. } | Backbone::HuggingFace { hf: path, .. } => path,
        }
    }

    /// The options of the builder.
    pub fn options(&self) -> Result<BuildOptions> {
        let (task, method) = (self.task.clone(), self.method.clone());
        let options = match &self.backbone {
            Backbone::Onnx { onnx, output, input_size } => {
                let side = *input_size as usize;
                let classes = task.width();
                let options = BuildOptions::image_classification(onnx, output, side, classes, method);
                BuildOptions { task, ..options }
            }
            Backbone::HuggingFace { hf, max_length } => text_options(hf, *max_length, task, method)?,
        };
        Ok(BuildOptions { seed: self.seed, ..options })
    }
}

/// Tokens of a text where nothing else is said.
pub const MAX_LENGTH: u32 = 128;

/// Options for a Hugging Face folder whose tokenizer fits its model.
pub fn text_options(folder: &Path, max_length: u32, task: TaskSpec, method: Peft) -> Result<BuildOptions> {
    let length = max_length as usize;
    let options = BuildOptions::hugging_face(folder, length, task, method)?;
    if let Some(text) = &options.text {
        Tokenizer::load(&text.tokenizer, length)?.check_vocabulary(text.vocabulary as usize)?;
    }
    Ok(options)
}

/// The task of a model for data that is labelled so.
fn task(labels: LabelKind) -> Result<TaskSpec> {
    match labels {
        LabelKind::Classes(classes) => Ok(TaskSpec::classification(classes)),
        LabelKind::MultiLabel(labels) => Ok(TaskSpec::MultiLabel { labels, pos_weight: Vec::new() }),
        LabelKind::Regression(outputs) => Ok(TaskSpec::Regression { outputs }),
        LabelKind::Tokens => bail!(
            "the data is labelled with its tokens: give artifacts of a language model, whose task is causal_lm"
        ),
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
    classes: Option<u32>,
    method: Option<Peft>,
    #[serde(default)]
    seed: u64,
}

impl Section {
    /// Replaces paths by where they lead.
    pub fn with_paths(mut self, locate: impl Fn(&Path) -> Result<PathBuf>) -> Result<Self> {
        self.artifacts = self.artifacts.as_deref().map(&locate).transpose()?;
        self.onnx = self.onnx.as_deref().map(&locate).transpose()?;
        self.hf = self.hf.as_deref().map(&locate).transpose()?;
        Ok(self)
    }

    /// Decides between the sources; `labels` is what the data has.
    pub fn resolve(self, labels: LabelKind) -> Result<Model> {
        if let (Some(wrong), LabelKind::Classes(classes)) = (self.classes, labels)
            && wrong != classes
        {
            bail!("classes is {wrong}, but the data has {classes}: make them equal");
        }
        let given = [self.onnx.is_some(), self.hf.is_some(), self.artifacts.is_some()];
        if given.into_iter().filter(|given| *given).count() > 1 {
            bail!("more than one of onnx, hf and artifacts is given: keep one");
        }
        let foreign = |key: &str, given: bool, of: &str| {
            if given { Err(anyhow!("{key} belongs to {of}")) } else { Ok(()) }
        };
        if self.hf.is_none() {
            foreign("max_length", self.max_length.is_some(), "hf, which is not given")?;
        }
        if self.onnx.is_none() {
            foreign("output", self.output.is_some(), "onnx, which is not given")?;
            foreign("input_size", self.input_size.is_some(), "onnx, which is not given")?;
        }
        let backbone = if let Some(onnx) = self.onnx {
            let missing = |key: &str| anyhow!("{key} is missing: artifacts built from onnx need it");
            let output = self.output.ok_or_else(|| missing("output"))?;
            let input_size = self.input_size.ok_or_else(|| missing("input_size"))?;
            Backbone::Onnx { onnx, output, input_size }
        } else if let Some(hf) = self.hf {
            Backbone::HuggingFace { hf, max_length: self.max_length.unwrap_or(MAX_LENGTH) }
        } else {
            foreign("method", self.method.is_some(), "onnx or hf: in artifacts it is fixed")?;
            return match self.artifacts {
                Some(artifacts) => {
                    let name = self.name.map_or_else(|| default_name(&artifacts, None), Ok)?;
                    Ok(Model { name, version: self.version, source: Source::Artifacts { artifacts } })
                }
                None => {
                    let name = self.name.ok_or_else(|| {
                        anyhow!(
                            "none of onnx, hf, artifacts and name is given: one of them says what to train"
                        )
                    })?;
                    Ok(Model { name, version: self.version, source: Source::Published {} })
                }
            };
        };
        let method = self.method.ok_or_else(|| anyhow!("method is missing: it says what is trained"))?;
        let build = Build { backbone, task: task(labels)?, method, seed: self.seed };
        let name = match self.name {
            Some(name) => name,
            None => default_name(build.path(), Some(&build.method.to_string()))?,
        };
        Ok(Model { name, version: self.version, source: Source::Build(build) })
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
        assert!(task(LabelKind::Tokens).is_err());
    }
}
