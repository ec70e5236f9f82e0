//! The folder of an export.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    str::FromStr,
};

use fedpeft_artifacts::ArtifactFolder;
use fedpeft_onnx::{Data, Model};
use serde::Serialize;

use crate::{ExportError, Trained, adapter_safetensors, inference, peft_folder};

/// Weights of more bytes than this are not put into the model's file: one file of protobuf has at most 2 GiB.
pub const INLINE_LIMIT: u64 = 1 << 30;

/// Where weights lie that are not in the model's file.
const DATA_FILE: &str = "model.onnx.data";
/// They begin at multiples of this, so that a runtime may map them.
const ALIGNMENT: u64 = 4096;
/// Smaller tensors stay in the model's file: some are shapes, which runtimes want to see at once.
const SMALL: usize = 1024;

/// What an adapter can be exported as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `model.onnx`
    Onnx,
    /// `adapter.safetensors`
    Safetensors,
    /// `peft/`
    Peft,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Onnx, Self::Safetensors, Self::Peft];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Onnx => "onnx",
            Self::Safetensors => "safetensors",
            Self::Peft => "peft",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|format| format.name() == text);
        found.ok_or_else(|| format!("format {text:?} is not known: use onnx, safetensors or peft"))
    }
}

/// Which formats to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Formats {
    /// Every one that can express the adapter.
    Applicable,
    /// These.
    Only(BTreeSet<Format>),
}

impl Formats {
    fn wants(&self, format: Format) -> bool {
        match self {
            Self::Applicable => true,
            Self::Only(formats) => formats.contains(&format),
        }
    }
}

/// What an export is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reading the backbone and merging the adapter into it.
    Merging,
    /// Writing a format.
    Writing(Format),
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Files, by their paths in the folder.
    pub files: Vec<ExportedFile>,
    /// Formats that cannot express the adapter, with the reason.
    pub skipped: Vec<(Format, String)>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportedFile {
    /// Path in the folder.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
}

/// Writes what was trained with `folder` to `destination`, which appears complete or not at all.
///
/// # Errors
/// [`ExportError`] in one line: what is wrong and what cures it.
pub fn export<'a>(
    folder: &ArtifactFolder,
    trained: impl Into<Trained<'a>>,
    formats: &Formats,
    destination: &Path,
    mut progress: impl FnMut(Step),
) -> Result<Exported, ExportError> {
    let trained = trained.into();
    vacant(destination)?;
    let mut staging = Staging::new(destination)?;
    if formats.wants(Format::Safetensors) {
        progress(Step::Writing(Format::Safetensors));
        staging.write("adapter.safetensors", &adapter_safetensors(folder.manifest(), trained)?)?;
    }
    let mut skipped = Vec::new();
    if formats.wants(Format::Onnx) || formats.wants(Format::Peft) {
        progress(Step::Merging);
        let inference = inference(folder, trained)?;
        if formats.wants(Format::Peft) {
            progress(Step::Writing(Format::Peft));
            match peft_folder(folder.manifest(), trained, &inference.merged) {
                Ok(peft) => {
                    staging.write("peft/adapter_config.json", &peft.config)?;
                    staging.write("peft/adapter_model.safetensors", &peft.model)?;
                    if let Some(head) = peft.head {
                        staging.write("peft/head.safetensors", &head)?;
                    }
                }
                Err(ExportError::Peft(reason)) if *formats == Formats::Applicable => {
                    skipped.push((Format::Peft, reason));
                }
                Err(error) => return Err(error),
            }
        }
        if formats.wants(Format::Onnx) {
            progress(Step::Writing(Format::Onnx));
            staging.write_model(inference.model, INLINE_LIMIT)?;
        }
    }
    let files = staging.publish(destination)?;
    Ok(Exported { files, skipped })
}

/// Whether nothing is at `destination`.
fn vacant(destination: &Path) -> Result<(), ExportError> {
    match fs::read_dir(destination) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(ExportError::Occupied(destination.to_owned())),
        },
        Err(_) if !destination.exists() => Ok(()),
        Err(error) => Err(ExportError::io(destination)(error)),
    }
}

/// A folder beside the destination that takes its place when it is complete.
struct Staging {
    folder: tempfile::TempDir,
    files: Vec<ExportedFile>,
}

impl Staging {
    fn new(destination: &Path) -> Result<Self, ExportError> {
        let parent = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(ExportError::io(parent))?;
        let mut builder = tempfile::Builder::new();
        // Temporary folders are private by default; this one becomes the result.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let folder =
            builder.prefix(".fedpeft-export-").tempdir_in(parent).map_err(ExportError::io(parent))?;
        Ok(Self { folder, files: Vec::new() })
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
        let path = self.folder.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(ExportError::io(parent))?;
        }
        fs::write(&path, bytes).map_err(ExportError::io(path))?;
        self.files.push(ExportedFile { name: name.to_owned(), size: bytes.len() as u64 });
        Ok(())
    }

    /// Writes the model, with its weights in a file of their own if they have more than `limit` bytes.
    fn write_model(&mut self, mut model: Model, limit: u64) -> Result<(), ExportError> {
        let weights: u64 = model.graph.initializers.values().map(|tensor| tensor.byte_len() as u64).sum();
        if weights > limit {
            let path = self.folder.path().join(DATA_FILE);
            let size = write_weights(&mut model, &path).map_err(ExportError::io(path))?;
            self.files.push(ExportedFile { name: DATA_FILE.to_owned(), size });
        }
        self.write("model.onnx", &model.to_bytes())
    }

    fn publish(self, destination: &Path) -> Result<Vec<ExportedFile>, ExportError> {
        if destination.exists() {
            fs::remove_dir(destination).map_err(ExportError::io(destination))?;
        }
        fs::rename(self.folder.keep(), destination).map_err(ExportError::io(destination))?;
        Ok(self.files)
    }
}

/// Moves the large tensors of `model` into the file `path` beside it; returns its size.
fn write_weights(model: &mut Model, path: &Path) -> std::io::Result<u64> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut position = 0u64;
    for tensor in model.graph.initializers.values_mut().filter(|tensor| tensor.byte_len() >= SMALL) {
        let Data::Inline(bytes) = &tensor.data else { continue };
        let offset = position.next_multiple_of(ALIGNMENT);
        out.write_all(&vec![0; (offset - position) as usize])?;
        out.write_all(bytes)?;
        position = offset + bytes.len() as u64;
        tensor.data = Data::External { location: DATA_FILE.to_owned(), offset };
    }
    out.flush()?;
    Ok(position)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpeft_onnx::{DType, Dim, Graph, Node, Tensor, ValueInfo};

    fn model() -> Model {
        let values: Vec<f32> = (0..600).map(|value| value as f32).collect();
        let dims = |features| vec![Dim::Symbol("N".into()), Dim::Fixed(features)];
        Model::new(Graph {
            nodes: vec![
                Node::new("MatMul", &["x", "a"], &["h"]),
                Node::new("MatMul", &["h", "b"], &["z"]),
                Node::new("Add", &["z", "c"], &["y"]),
            ],
            inputs: vec![ValueInfo::new("x", DType::F32, dims(20))],
            outputs: vec![ValueInfo::new("y", DType::F32, dims(20))],
            initializers: [
                ("a".to_owned(), Tensor::f32([20, 30], &values)),
                ("b".to_owned(), Tensor::f32([30, 20], &values)),
                ("c".to_owned(), Tensor::f32([20], &values[..20])),
            ]
            .into(),
            ..Graph::default()
        })
    }

    #[test]
    fn large_weights_have_a_file_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        for (limit, expected) in [(4880, &["model.onnx"][..]), (4879, &[DATA_FILE, "model.onnx"])] {
            let destination = dir.path().join(limit.to_string());
            let mut staging = Staging::new(&destination).unwrap();
            staging.write_model(model(), limit).unwrap();
            let files = staging.publish(&destination).unwrap();
            assert_eq!(files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), expected);
            assert!(
                files
                    .iter()
                    .all(|file| { fs::metadata(destination.join(&file.name)).unwrap().len() == file.size })
            );
            assert_eq!(Model::load(destination.join("model.onnx")).unwrap(), model());
        }
        let graph = Model::load_graph(dir.path().join("4879/model.onnx")).unwrap().graph;
        let second = Data::External { location: DATA_FILE.into(), offset: ALIGNMENT };
        assert_eq!(graph.initializers["b"].data, second);
        assert!(graph.initializers["c"].bytes().is_some(), "a small tensor stays");
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        assert!(vacant(dir.path()).is_ok() && vacant(&dir.path().join("new")).is_ok());
        fs::write(dir.path().join("file"), "").unwrap();
        let error = vacant(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is not empty: give a new or empty folder"), "{error}");
        assert!(vacant(&dir.path().join("file")).is_err());
    }

    #[test]
    fn formats_are_read_and_written_alike() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("onx".parse::<Format>().unwrap_err().contains("onnx, safetensors or peft"));
    }
}
