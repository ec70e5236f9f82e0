//! From an ONNX export to an artifact folder.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use fedpeft_autodiff::AutodiffError;
use fedpeft_codec::{InvalidLayout, Layout, TensorSpec};
use fedpeft_onnx::{Data, Model, OPSET, OnnxError};
use fedpeft_passes::{PassError, PrepareOptions, Prepared, prepare};
use fedpeft_peft::{Peft, PeftError, Pooling, apply};
use fedpeft_protocol::Digest;

use crate::{
    CheckpointError, Manifest, checkpoint, graphs,
    manifest::{BackboneSpec, FORMAT_VERSION, FileRef, Files, InputSpec, MANIFEST_FILE, ManifestError},
    optimizer,
};

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The ONNX export.
    pub model: PathBuf,
    /// The value at which the backbone ends: tokens `[N, T, C]` or features `[N, C]`.
    pub output: String,
    /// Shape of one example: channels, height, width.
    pub input_shape: Vec<usize>,
    /// Classes of the head.
    pub classes: u32,
    /// What is trained.
    pub method: Peft,
    /// Seed of the random part of new tensors.
    pub seed: u64,
    /// How tokens become features.
    pub pooling: Pooling,
    /// Per-channel mean of the input, for values in `[0, 1]`.
    pub mean: Vec<f32>,
    /// Per-channel deviation of the input.
    pub std: Vec<f32>,
}

impl BuildOptions {
    /// Per-channel mean of ImageNet, which most vision backbones expect.
    pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
    /// Per-channel deviation of ImageNet.
    pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
}

/// Why a folder cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An option that cannot be.
    #[error("{0}")]
    Option(String),
    /// The model cannot be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The backbone cannot be prepared.
    #[error(transparent)]
    Prepare(#[from] PassError),
    /// The method does not fit the model.
    #[error(transparent)]
    Method(#[from] PeftError),
    /// The graph cannot be differentiated.
    #[error(transparent)]
    Autodiff(#[from] AutodiffError),
    /// The adapter is no adapter.
    #[error(transparent)]
    Layout(#[from] InvalidLayout),
    /// The checkpoint cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The manifest cannot be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file cannot be written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The destination holds something else.
    #[error("{path} exists and is no artifact folder: give a new or empty folder", path = .0.display())]
    Occupied(PathBuf),
}

/// Weights begin at multiples of this in the backbone file, so that a runtime may map them.
const ALIGNMENT: u64 = 64;

/// Builds the folder `destination`. It appears complete or not at all; an artifact folder already there is
/// replaced.
///
/// # Errors
/// [`BuildError`], one line that names what was wrong.
pub fn build(options: &BuildOptions, destination: &Path) -> Result<Manifest, BuildError> {
    check(options, destination)?;
    let source = digest_of(&options.model)?;
    let model = Model::load(&options.model)?;
    let prepare_options =
        PrepareOptions { output: options.output.clone(), input_shape: options.input_shape.clone() };
    let mut backbone = prepare(model, &prepare_options)?;
    let weights = Weights::lay_out(&backbone);
    let trainable = apply(&options.method, &mut backbone, options.seed)?;
    backbone.fold_frozen(&trainable)?;
    tracing::debug!(nodes = backbone.graph.nodes.len(), trainable = trainable.len(), "backbone prepared");
    let input = backbone.graph.inputs[0].name.clone();
    let mut graphs = graphs::build(backbone, &trainable, options.classes as usize, options.pooling)?;

    let spec = |(name, tensor): &(String, fedpeft_onnx::Tensor)| TensorSpec {
        name: name.clone(),
        shape: tensor.shape.iter().map(|dim| *dim as u64).collect(),
    };
    let adapter = Layout::new(graphs.adapter.iter().map(spec).collect())?;
    let folder = Staging::new(destination)?;
    let backbone_file = folder.write_weights(&weights)?;
    for model in [&mut graphs.training, &mut graphs.eval] {
        weights.externalise(model, &backbone_file.name);
    }
    let files = Files {
        training: folder.write("training_model.onnx", &graphs.training.to_bytes())?,
        eval: folder.write("eval_model.onnx", &graphs.eval.to_bytes())?,
        optimizer_sgd: folder.write("optimizer_sgd.onnx", &optimizer::sgd(&adapter)?.to_bytes())?,
        optimizer_adamw: folder.write("optimizer_adamw.onnx", &optimizer::adamw(&adapter)?.to_bytes())?,
        checkpoint: folder.write("checkpoint.safetensors", &checkpoint::write(&graphs.adapter)?)?,
        backbone: backbone_file,
    };
    let manifest = Manifest {
        format: FORMAT_VERSION,
        method: options.method.clone(),
        adapter,
        excluded: BTreeMap::new(),
        input: InputSpec {
            name: input,
            shape: options.input_shape.iter().map(|dim| *dim as u64).collect(),
            mean: options.mean.clone(),
            std: options.std.clone(),
        },
        classes: options.classes,
        backbone: BackboneSpec { values: weights.values, source },
        opset: OPSET,
        files,
    };
    folder.write(MANIFEST_FILE, &manifest.to_json()?)?;
    folder.publish(destination)?;
    Ok(manifest)
}

fn check(options: &BuildOptions, destination: &Path) -> Result<(), BuildError> {
    let wrong = |text: String| Err(BuildError::Option(text));
    let channels = options.input_shape.first().copied().unwrap_or(0);
    if options.classes < 2 {
        return wrong(format!("classes must be at least 2, not {}", options.classes));
    }
    if options.mean.len() != channels || options.std.len() != channels {
        return wrong(format!("mean and std need one value for each of the {channels} channels"));
    }
    if options.std.iter().any(|std| !std.is_finite() || *std <= 0.0) {
        return wrong(format!("std must be greater than 0, not {:?}", options.std));
    }
    let occupied = destination.exists() && !destination.join(MANIFEST_FILE).is_file();
    let empty = fs::read_dir(destination).is_ok_and(|mut entries| entries.next().is_none());
    if occupied && !empty {
        return Err(BuildError::Occupied(destination.to_owned()));
    }
    Ok(())
}

fn digest_of(path: &Path) -> Result<Digest, BuildError> {
    let opened = File::open(path).and_then(Digest::of_reader);
    opened.map_err(|source| BuildError::Io { path: path.to_owned(), source })
}

/// All weights of the backbone and where each lies in their file. The file holds every parameter, also those
/// a method trains: so it is the same for all methods, and a client fetches it once.
struct Weights {
    tensors: Vec<(String, fedpeft_onnx::Tensor, u64)>,
    values: u64,
}

impl Weights {
    fn lay_out(backbone: &Prepared) -> Self {
        let mut weights = Self { tensors: Vec::new(), values: 0 };
        let mut offset = 0;
        for name in &backbone.parameters {
            let tensor = &backbone.graph.initializers[name];
            weights.tensors.push((name.clone(), tensor.clone(), offset));
            weights.values += tensor.len() as u64;
            offset = (offset + tensor.byte_len() as u64).next_multiple_of(ALIGNMENT);
        }
        weights
    }

    fn write(&self, mut out: impl Write) -> io::Result<()> {
        let mut position = 0;
        for (_, tensor, offset) in &self.tensors {
            let padding = (offset - position) as usize;
            out.write_all(&[0; ALIGNMENT as usize][..padding])?;
            let bytes = tensor.bytes().map_or(&[][..], |bytes| &bytes[..]);
            out.write_all(bytes)?;
            position = offset + bytes.len() as u64;
        }
        out.flush()
    }

    /// Makes the weights that `model` still has refer to the file.
    fn externalise(&self, model: &mut Model, file: &str) {
        for (name, tensor, offset) in &self.tensors {
            if let Some(initializer) = model.graph.initializers.get_mut(name)
                && initializer == tensor
            {
                initializer.data = Data::External { location: file.to_owned(), offset: *offset };
            }
        }
    }
}

/// A folder beside the destination that takes its place when it is complete.
struct Staging {
    folder: tempfile::TempDir,
}

impl Staging {
    fn new(destination: &Path) -> Result<Self, BuildError> {
        let parent = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let io = |source| BuildError::Io { path: parent.to_owned(), source };
        fs::create_dir_all(parent).map_err(io)?;
        let mut builder = tempfile::Builder::new();
        // Temporary folders are private by default; this one becomes the result.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let folder = builder.prefix(".fedpeft-build-").tempdir_in(parent).map_err(io)?;
        Ok(Self { folder })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<FileRef, BuildError> {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).map_err(|source| BuildError::Io { path, source })?;
        Ok(FileRef { name: name.to_owned(), digest: Digest::of(bytes), size: bytes.len() as u64 })
    }

    /// Writes the weights under a name that begins with their digest.
    fn write_weights(&self, weights: &Weights) -> Result<FileRef, BuildError> {
        let path = self.folder.path().join("backbone.bin");
        let io = |source| BuildError::Io { path: path.clone(), source };
        let file = File::create(&path).map_err(io)?;
        weights.write(BufWriter::with_capacity(1 << 20, file)).map_err(io)?;
        let digest = digest_of(&path)?;
        let size = fs::metadata(&path).map_err(io)?.len();
        let name = format!("backbone-{}.bin", digest.short());
        fs::rename(&path, self.folder.path().join(&name)).map_err(io)?;
        Ok(FileRef { name, digest, size })
    }

    fn publish(self, destination: &Path) -> Result<(), BuildError> {
        let io = |source| BuildError::Io { path: destination.to_owned(), source };
        if destination.exists() {
            fs::remove_dir_all(destination).map_err(io)?;
        }
        fs::rename(self.folder.keep(), destination).map_err(io)
    }
}
