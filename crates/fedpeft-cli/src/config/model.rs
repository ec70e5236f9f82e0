//! `[model]`: an ONNX file to build artifacts from, an artifact folder, or a name in the registry.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use fedpeft_artifacts::BuildOptions;
use fedpeft_peft::Peft;
use fedpeft_protocol::ModelName;
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
    /// Exported model.
    pub onnx: PathBuf,
    /// Tensor to cut it at.
    pub output: String,
    /// Height and width of the images.
    pub input_size: u32,
    /// Classes of the head.
    pub classes: u32,
    /// PEFT method.
    pub method: Peft,
    /// Seed of the random part of new tensors.
    pub seed: u64,
}

impl Build {
    /// The options of the builder.
    pub fn options(&self) -> Result<BuildOptions> {
        let side = self.input_size as usize;
        let options = BuildOptions::image_classification(
            &self.onnx,
            &self.output,
            side,
            self.classes,
            self.method.clone(),
        );
        Ok(BuildOptions { seed: self.seed, ..options })
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
        Ok(self)
    }

    /// Decides between the three sources; `classes` is what the data has.
    pub fn resolve(self, classes: u32) -> Result<Model> {
        if let Some(wrong) = self.classes.filter(|own| *own != classes) {
            bail!("classes is {wrong}, but the data has {classes}: make them equal");
        }
        match (self.onnx, self.artifacts) {
            (Some(_), Some(_)) => bail!("onnx and artifacts are both given: keep one"),
            (Some(onnx), None) => {
                let missing = |key: &str| anyhow!("{key} is missing: artifacts built from onnx need it");
                let build = Build {
                    output: self.output.ok_or_else(|| missing("output"))?,
                    input_size: self.input_size.ok_or_else(|| missing("input_size"))?,
                    method: self.method.ok_or_else(|| missing("method"))?,
                    seed: self.seed,
                    classes,
                    onnx,
                };
                let name = match self.name {
                    Some(name) => name,
                    None => default_name(&build.onnx, Some(&build.method.to_string()))?,
                };
                Ok(Model { name, version: self.version, source: Source::Build(build) })
            }
            (None, Some(artifacts)) => {
                if self.method.is_some() || self.output.is_some() || self.input_size.is_some() {
                    bail!("method, output and input_size are fixed in artifacts: give onnx to build others");
                }
                let name = match self.name {
                    Some(name) => name,
                    None => default_name(&artifacts, None)?,
                };
                Ok(Model { name, version: self.version, source: Source::Artifacts { artifacts } })
            }
            (None, None) => {
                let name = self.name.ok_or_else(|| {
                    anyhow!("none of onnx, artifacts and name is given: one of them says what to train")
                })?;
                Ok(Model { name, version: self.version, source: Source::Published {} })
            }
        }
    }
}

/// A registry name made of a file's name and the method.
fn default_name(path: &Path, method: Option<&str>) -> Result<ModelName> {
    let stem = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
    let text: String = method.map_or_else(|| stem.to_string(), |method| format!("{stem}-{method}"));
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
        let section = |text: &str| toml::from_str::<Section>(text).unwrap().resolve(10);
        assert!(section("onnx = 'a'\nartifacts = 'b'").is_err());
        assert!(section("artifacts = 'b'\nmethod = 'bias'").is_err());
        assert!(section("artifacts = 'b'\nclasses = 9").is_err());
        assert!(section("").is_err());
        assert!(matches!(section("name = 'm'").unwrap().source, Source::Published {}));
        assert!(matches!(section("artifacts = 'b'").unwrap().source, Source::Artifacts { .. }));
    }
}
