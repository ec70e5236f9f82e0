//! `fedpeft artifacts`: build and inspect training artifacts.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Subcommand, ValueEnum};
use fedpeft_artifacts::{ArtifactFolder, BuildOptions, Manifest, Storage, build};
use fedpeft_protocol::Digest;
use serde::Serialize;

use super::targets::{self, TargetsArgs};
use crate::{
    config::{
        backbone::BackboneKeys,
        method::MethodArgs,
        task::{TaskArgs, WidthArgs},
    },
    output::{self, Output},
};

/// What to do with artifacts.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build training artifacts from an ONNX model or a Hugging Face folder.
    #[command(after_help = "\
An ONNX model of images or texts is cut at a value that holds tokens [N, T, C] or features [N, C]. A Hugging Face
folder holds config.json, model.safetensors and tokenizer.json of a BERT, RoBERTa or DistilBERT. A head is put on
it, except on a language model whose last dimension is its vocabulary: that is cut behind its own head.
The folder trains on any stock ONNX Runtime: its graphs have standard operators only.

Examples:
  fedpeft artifacts build --model vit.onnx --output last_hidden_state --input-size 56 --classes 10 --method bias -o vit-bias
  fedpeft artifacts build --model vit.onnx --output last_hidden_state --input-size 56 --classes 10 --method lora --rank 4 --targets query,value -o vit-lora
  fedpeft artifacts build --model vit.onnx --output last_hidden_state --input-size 56 --classes 10 --method lora --residual -o vit-exact
  fedpeft artifacts build --model all-MiniLM-L6-v2 --max-length 64 --classes 5 --method bias -o minilm-bias
  fedpeft artifacts build --model gpt2.onnx --output logits --tokenizer tokenizer.json --task causal-lm --method lora -o gpt2-lora")]
    Build(Box<BuildArgs>),
    /// Print the adapter's tensors, their size and the files of an artifact folder.
    #[command(after_help = "\
Examples:
  fedpeft artifacts inspect artifacts
    fedpeft artifacts inspect artifacts --json | jq .adapter_bytes
  fedpeft artifacts inspect --targets vit.onnx --output last_hidden_state
  fedpeft artifacts inspect --targets all-MiniLM-L6-v2")]
    Inspect(Box<InspectArgs>),
}

/// What to inspect.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// Artifact folder.
    #[arg(required_unless_present = "targets")]
    folder: Option<PathBuf>,
    /// Do not compare the files with the digests in the manifest.
    #[arg(long)]
    no_verify: bool,
    #[command(flatten)]
    targets: TargetsArgs,
    #[command(flatten)]
    output: Output,
}

/// What to build.
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// ONNX model, as exported, or Hugging Face folder.
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Value at which the backbone ends (ONNX).
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Height and width of the input images (ONNX).
    #[arg(long, value_name = "PX")]
    input_size: Option<u32>,
    /// tokenizer.json of a model of texts (ONNX).
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens of a text; longer ones are cut [default: 128].
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<u32>,
    #[command(flatten)]
    width: WidthArgs,
    /// Seed of the random part of new tensors.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// How frozen matrices are stored; they are computed with in f32.
    #[arg(long, value_enum, default_value_t = StorageArg::F32)]
    storage: StorageArg,
    /// Add a training graph that clips the gradient of every example, for runs with training.dp_sgd.
    #[arg(long)]
    dp_sgd: bool,
    /// Folder to write; an artifact folder that is there is replaced.
    #[arg(short, long = "out", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    format: Output,
    // Last, because their headings hold for all that follows.
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    method: MethodArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StorageArg {
    /// Four bytes a value.
    F32,
    /// Two bytes a value, values up to 65,504.
    F16,
    /// Two bytes a value, less precise, of any size.
    Bf16,
}

impl From<StorageArg> for Storage {
    fn from(storage: StorageArg) -> Self {
        match storage {
            StorageArg::F32 => Self::F32,
            StorageArg::F16 => Self::F16,
            StorageArg::Bf16 => Self::Bf16,
        }
    }
}

/// Runs one of them.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Build(args) => build_folder(*args),
        Command::Inspect(args) => match (args.targets.model(), args.folder) {
            (Some(_), _) => targets::list(args.targets, args.output),
            (None, Some(folder)) => inspect(&folder, !args.no_verify, args.output),
            (None, None) => bail!("give an artifact folder, or --targets and a model"),
        },
    }
}

fn build_folder(args: BuildArgs) -> Result<()> {
    let method = args.method.over(None)?.ok_or_else(|| anyhow!("--method is missing: say what to train"))?;
    let task = args.width.task(args.task)?;
    let (onnx, hf) = if args.model.is_dir() { (None, Some(args.model)) } else { (Some(args.model), None) };
    let keys = BackboneKeys {
        onnx,
        hf,
        output: args.output,
        input_size: args.input_size,
        max_length: args.max_length,
        tokenizer: args.tokenizer,
    };
    let backbone = keys.resolve()?.ok_or_else(|| anyhow!("--model is missing"))?;
    let options = backbone.options(&task, method, args.seed)?;
    let options = BuildOptions { storage: args.storage.into(), dp_sgd: args.dp_sgd, ..options };
    build(&options, &args.out)?;
    // What was written is what is shown: the folder is read back.
    inspect(&args.out, false, args.format)
}

fn inspect(folder: &Path, verify: bool, output: Output) -> Result<()> {
    let folder = ArtifactFolder::open(folder)
        .with_context(|| format!("{} cannot be read as an artifact folder", folder.display()))?;
    if verify {
        folder.verify()?;
    }
    output.show(&Inspection::new(folder.digest(), folder.manifest()), human)
}

/// What `inspect` says of a folder.
#[derive(Debug, Serialize)]
struct Inspection<'a> {
    digest: Digest,
    manifest: &'a Manifest,
    adapter_values: u64,
    adapter_bytes: u64,
    /// Bytes of what LoRA's factors do not hold, where the artifacts have residuals.
    #[serde(skip_serializing_if = "Option::is_none")]
    residual_bytes: Option<u64>,
    backbone_values: u64,
    /// Adapter values of all values of the model.
    share: f64,
}

impl<'a> Inspection<'a> {
    fn new(digest: Digest, manifest: &'a Manifest) -> Self {
        let adapter_values = manifest.adapter.values() as u64;
        let backbone_values = manifest.backbone.values;
        Self {
            digest,
            manifest,
            adapter_values,
            adapter_bytes: manifest.adapter.bytes(),
            // What was read was checked.
            residual_bytes: manifest.residual().ok().flatten().map(|layout| layout.bytes()),
            backbone_values,
            share: adapter_values as f64 / backbone_values.max(1) as f64,
        }
    }
}

fn human(inspection: &Inspection<'_>) -> String {
    let manifest = inspection.manifest;
    let mut text = String::new();
    let _ = writeln!(text, "method    {}", manifest.method);
    for input in &manifest.inputs {
        let shape: Vec<String> = input.shape.iter().map(ToString::to_string).collect();
        let source = input.source.name();
        let _ = writeln!(text, "input     {} [N x {}], made from {source}", input.name, shape.join(" x "));
    }
    let _ = writeln!(text, "task      {}, {}", manifest.task.name(), manifest.task.outputs());
    let _ = writeln!(text, "opset     {}", manifest.opset);
    let _ = writeln!(text, "digest    {}", inspection.digest);
    let _ = writeln!(text, "backbone  {}", manifest.backbone.source);

    let mut tensors = output::table(&["adapter tensor", "shape", "values", "bytes"], [2, 3]);
    for tensor in manifest.adapter.tensors() {
        let values = tensor.values() as u64;
        let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
        tensors.add_row([
            tensor.name.clone(),
            shape.join(" x "),
            output::grouped(values),
            output::bytes(values * 4),
        ]);
    }
    tensors.add_row([
        format!("{} tensors", manifest.adapter.tensors().len()),
        String::new(),
        output::grouped(inspection.adapter_values),
        output::bytes(inspection.adapter_bytes),
    ]);
    let _ = write!(text, "\n{}\n\n", tensors.trim_fmt());
    let _ = writeln!(
        text,
        "The adapter has {} of the backbone's {} values ({}): {} per client and direction instead of {}.",
        output::grouped(inspection.adapter_values),
        output::grouped(inspection.backbone_values),
        output::percent(inspection.share),
        output::bytes(inspection.adapter_bytes),
        output::bytes(inspection.backbone_values * 4),
    );
    if let Some(bytes) = inspection.residual_bytes {
        let _ = writeln!(
            text,
            "With aggregation lora_exact, {} more come down from the second round on: what mean factors do not hold.",
            output::bytes(bytes)
        );
    }
    for (name, reason) in &manifest.excluded {
        let _ = writeln!(text, "Not trained: {name}: {reason}");
    }

    let mut files = output::table(&["file", "bytes", "sha-256"], [1]);
    for (file, _) in manifest.all_files() {
        files.add_row([file.name.clone(), output::bytes(file.size), file.digest.short()]);
    }
    let _ = write!(text, "\n{}", files.trim_fmt());
    text
}
