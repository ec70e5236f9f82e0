//! From an ONNX export to an artifact folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use fedpeft_autodiff::AutodiffError;
use fedpeft_codec::{FACTOR_A, InvalidLayout, Layout, RESIDUAL, TensorSpec};
use fedpeft_hf::HfError;
use fedpeft_onnx::{OPSET, OnnxError};
use fedpeft_passes::{InputDecl, PassError, PrepareOptions, Prepared, prepare};
use fedpeft_peft::{Peft, PeftError, Pooling, apply};
use fedpeft_protocol::Digest;

use crate::{
    CheckpointError, Manifest, OutOfRange, Storage, checkpoint, graphs, inputs,
    manifest::{
        BackboneSpec, ElementType, FORMAT_VERSION, FileRef, Files, InputSource, InputSpec, InvalidInput,
        InvalidTask, MANIFEST_FILE, ManifestError, TaskSpec, TextSpec,
    },
    optimizer,
    source::{self, digest_of, source_digest},
    weights::Weights,
};

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The ONNX export, or a Hugging Face model folder.
    pub model: PathBuf,
    /// The value at which the backbone ends: tokens `[N, T, C]` or features `[N, C]`.
    pub output: String,
    /// Every input that the backbone reads.
    pub inputs: Vec<InputOptions>,
    /// How text becomes token ids, for models that read them.
    pub text: Option<TextOptions>,
    /// What is learned.
    pub task: TaskSpec,
    /// What is trained.
    pub method: Peft,
    /// Seed of the random part of new tensors.
    pub seed: u64,
    /// How tokens become features.
    pub pooling: Pooling,
    /// How frozen weights are stored.
    pub storage: Storage,
    /// Whether there is a second training graph, which clips the gradient of every example: that of `dp_sgd`.
    pub dp_sgd: bool,
}

/// One input of the model.
#[derive(Debug, Clone)]
pub struct InputOptions {
    /// Its name; inputs without one are taken in the model's order.
    pub name: Option<String>,
    /// Type of its values.
    pub dtype: ElementType,
    /// Shape of one example.
    pub shape: Vec<usize>,
    /// What the values are made from.
    pub source: InputSource,
}

/// How text becomes token ids.
#[derive(Debug, Clone)]
pub struct TextOptions {
    /// `tokenizer.json` of the `tokenizers` library.
    pub tokenizer: PathBuf,
    /// Token ids are `0..vocabulary`.
    pub vocabulary: u32,
    /// Id of padding.
    pub pad_id: u32,
}

impl BuildOptions {
    /// Plain classification of square RGB images by their class token, normalised as ImageNet is.
    pub fn image_classification(
        model: impl Into<PathBuf>,
        output: impl Into<String>,
        side: usize,
        classes: u32,
        method: impl Into<Peft>,
    ) -> Self {
        Self {
            model: model.into(),
            output: output.into(),
            inputs: vec![InputOptions::image(side)],
            text: None,
            task: TaskSpec::classification(classes),
            method: method.into(),
            seed: 0,
            pooling: Pooling::Cls,
            storage: Storage::default(),
            dp_sgd: false,
        }
    }
}

impl InputOptions {
    /// Per-channel mean of ImageNet, which most vision backbones expect.
    pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
    /// Per-channel deviation of ImageNet.
    pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

    /// Square RGB images, normalised as ImageNet is.
    pub fn image(side: usize) -> Self {
        let source = InputSource::Image { mean: Self::IMAGENET_MEAN.into(), std: Self::IMAGENET_STD.into() };
        Self { name: None, dtype: ElementType::F32, shape: vec![3, side, side], source }
    }

    /// Token ids, attention mask or token types of `length` tokens.
    pub fn tokens(name: impl Into<String>, source: InputSource, length: usize) -> Self {
        Self { name: Some(name.into()), dtype: ElementType::I64, shape: vec![length], source }
    }

    fn declaration(&self) -> InputDecl {
        InputDecl { name: self.name.clone(), dtype: self.dtype.dtype(), shape: self.shape.clone() }
    }

    fn spec(&self, name: String) -> InputSpec {
        let shape = self.shape.iter().map(|dim| *dim as u64).collect();
        InputSpec { name, dtype: self.dtype, shape, source: self.source.clone() }
    }
}

/// Why a folder cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An option that cannot be.
    #[error("{0}")]
    Option(String),
    /// Inputs that cannot be.
    #[error(transparent)]
    Input(#[from] InvalidInput),
    /// A task that cannot be.
    #[error(transparent)]
    Task(#[from] InvalidTask),
    /// The model cannot be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The model folder cannot be read.
    #[error(transparent)]
    HuggingFace(#[from] HfError),
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
    /// The weights do not fit the type they are to be stored in.
    #[error(transparent)]
    Storage(#[from] OutOfRange),
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

/// Builds the folder `destination`. It appears complete or not at all; an artifact folder already there is
/// replaced.
///
/// # Errors
/// [`BuildError`], one line that names what was wrong.
pub fn build(options: &BuildOptions, destination: &Path) -> Result<Manifest, BuildError> {
    check(options, destination)?;
    let source = source_digest(&options.model)?;
    let mut backbone = backbone(options)?;
    let names: Vec<String> = backbone.graph.inputs.iter().map(|input| input.name.clone()).collect();
    let mut inputs: Vec<InputSpec> =
        options.inputs.iter().zip(names).map(|(input, name)| input.spec(name)).collect();
    let weights = Weights::lay_out(&backbone, options.storage)?;
    let trainable = apply(&options.method, &mut backbone, options.seed)?;
    let given = residuals(&options.method, &trainable);
    // What becomes an input is no constant.
    backbone.fold_frozen(&trainable.union(&given).cloned().collect())?;
    tracing::debug!(nodes = backbone.graph.nodes.len(), trainable = trainable.len(), "backbone prepared");
    let mask = inputs.iter().find(|input| input.source == InputSource::AttentionMask);
    let mask = mask.map(|input| input.name.as_str());
    let mut graphs =
        graphs::build(backbone, (&trainable, &given), &options.task, options.pooling, mask, options.dp_sgd)?;
    if graphs.adapter.is_empty() {
        let method = &options.method;
        return Err(BuildError::Option(format!(
            "method {method} trains nothing here: the model has its own head, choose another method"
        )));
    }
    // What neither graph reads (a mask of which the model needs the shape alone) is no input.
    inputs.retain(|input| graphs.eval.graph.input(&input.name).is_some());

    let spec = |(name, tensor): &(String, fedpeft_onnx::Tensor)| TensorSpec {
        name: name.clone(),
        shape: tensor.shape.iter().map(|dim| *dim as u64).collect(),
    };
    let adapter = Layout::new(graphs.adapter.iter().map(spec).collect())?;
    let folder = Staging::new(destination)?;
    let backbone_file = folder.write_weights(&weights)?;
    let text = options.text.as_ref().map(|text| folder.write_text(text, &inputs)).transpose()?;
    for model in [&mut graphs.training, &mut graphs.eval].into_iter().chain(&mut graphs.dp_training) {
        weights.externalise(model, &backbone_file.name);
    }
    let dp_training = graphs.dp_training.as_ref();
    let files = Files {
        dp_training: dp_training
            .map(|model| folder.write("dp_training_model.onnx", &model.to_bytes()))
            .transpose()?,
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
        inputs,
        text,
        task: options.task.clone(),
        backbone: BackboneSpec { values: weights.values(), storage: options.storage, source },
        opset: OPSET,
        files,
    };
    manifest.check()?;
    folder.write(MANIFEST_FILE, &manifest.to_json()?)?;
    folder.publish(destination)?;
    Ok(manifest)
}

/// Reads and prepares the backbone of `options`, as methods meet it.
///
/// # Errors
/// [`BuildError`] as in [`build`].
pub fn backbone(options: &BuildOptions) -> Result<Prepared, BuildError> {
    let prepare_options = PrepareOptions {
        output: options.output.clone(),
        inputs: options.inputs.iter().map(InputOptions::declaration).collect(),
    };
    Ok(prepare(source::read(options)?, &prepare_options)?)
}

/// Names of the residuals of the layers that these factors tune, where the method has any.
fn residuals(method: &Peft, trainable: &BTreeSet<String>) -> BTreeSet<String> {
    let modules = trainable.iter().filter_map(|name| name.strip_suffix(FACTOR_A));
    modules.filter(|_| method.has_residuals()).map(|module| format!("{module}{RESIDUAL}")).collect()
}

fn check(options: &BuildOptions, destination: &Path) -> Result<(), BuildError> {
    let numbered = |(i, input): (usize, &InputOptions)| {
        input.spec(input.name.clone().unwrap_or_else(|| format!("number {}", i + 1)))
    };
    let specs: Vec<InputSpec> = options.inputs.iter().enumerate().map(numbered).collect();
    inputs::check(&specs, None)?;
    options.task.check()?;
    options.task.label_shape(&specs)?;
    let occupied = destination.exists() && !destination.join(MANIFEST_FILE).is_file();
    let empty = fs::read_dir(destination).is_ok_and(|mut entries| entries.next().is_none());
    if occupied && !empty {
        return Err(BuildError::Occupied(destination.to_owned()));
    }
    Ok(())
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

    /// Copies the tokenizer.
    fn write_text(&self, text: &TextOptions, inputs: &[InputSpec]) -> Result<TextSpec, BuildError> {
        let path = text.tokenizer.clone();
        let bytes = fs::read(&path).map_err(|source| BuildError::Io { path, source })?;
        let ids = inputs.iter().find(|input| input.source == InputSource::TokenIds);
        let length = ids.and_then(|ids| ids.shape.first()).copied().unwrap_or(0);
        Ok(TextSpec {
            tokenizer: self.write("tokenizer.json", &bytes)?,
            max_length: u32::try_from(length).unwrap_or(u32::MAX),
            vocabulary: text.vocabulary,
            pad_id: text.pad_id,
        })
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
