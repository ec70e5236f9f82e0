//! `fedpeft artifacts inspect --targets`: what methods can tune in a model.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use fedpeft_onnx::{Dim, Model};
use fedpeft_peft::{Method, Structure};
use serde::Serialize;

use crate::{
    config::{backbone::BackboneKeys, task::Task},
    output::{self, Output},
};

/// A model whose parts are listed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Targets")]
pub struct TargetsArgs {
    /// List the linear layers, blocks, normalisations and embeddings of this ONNX model or Hugging Face folder.
    #[arg(long, value_name = "MODEL", conflicts_with = "folder")]
    targets: Option<PathBuf>,
    /// Value at which the backbone ends (ONNX) [default: the model's first output].
    #[arg(long = "output", value_name = "NAME", requires = "targets")]
    cut: Option<String>,
    /// Height and width of the input images (ONNX) [default: what the model declares].
    #[arg(long, value_name = "PX", requires = "targets")]
    input_size: Option<u32>,
    /// tokenizer.json of a model of texts (ONNX).
    #[arg(long, value_name = "FILE", requires = "targets")]
    tokenizer: Option<PathBuf>,
    /// Tokens of a text.
    #[arg(long, value_name = "TOKENS", requires = "targets")]
    max_length: Option<u32>,
}

impl TargetsArgs {
    /// The model, if one is given.
    pub fn model(&self) -> Option<&Path> {
        self.targets.as_deref()
    }
}

/// What can be tuned.
#[derive(Debug, Serialize)]
struct Parts {
    blocks: usize,
    norms: usize,
    embeddings: Vec<String>,
    targets: Vec<Layer>,
}

/// One linear layer, or a part of a packed one.
#[derive(Debug, Serialize)]
struct Layer {
    target: String,
    weight: String,
    inputs: usize,
    outputs: usize,
    /// Whether it is a part of a packed layer.
    part: bool,
}

/// Lists them.
pub fn list(args: TargetsArgs, output: Output) -> Result<()> {
    let model = args.targets.ok_or_else(|| anyhow!("--targets needs a model"))?;
    let (mut cut, mut size) = (args.cut, args.input_size);
    let folder = model.is_dir();
    if !folder {
        let text = args.tokenizer.is_some() || args.max_length.is_some();
        let declared = Declared::of(&model)?;
        cut = cut.or(declared.output);
        size = size.or(declared.input_size.filter(|_| !text));
    }
    let (onnx, hf) = if folder { (None, Some(model)) } else { (Some(model), None) };
    let (tokenizer, max_length) = (args.tokenizer, args.max_length);
    let keys = BackboneKeys { onnx, hf, output: cut, input_size: size, max_length, tokenizer };
    let backbone = keys.resolve()?.ok_or_else(|| anyhow!("--targets needs a model"))?;
    let options = backbone.options(&Task::any()?, Method::Head.into(), 0)?;
    let prepared = fedpeft_artifacts::backbone(&options)
        .context("the model cannot be prepared; --output names the value at which the backbone ends")?;
    let structure = Structure::of(&prepared)?;
    let layer = |target: &fedpeft_peft::Target| {
        let linear = &structure.linears[target.linear];
        Layer {
            target: target.path.clone(),
            weight: linear.weight.clone(),
            inputs: linear.inputs,
            outputs: target.columns.as_ref().map_or(linear.outputs, Vec::len),
            part: target.columns.is_some(),
        }
    };
    let parts = Parts {
        blocks: structure.blocks.len(),
        norms: structure.norms.len(),
        embeddings: structure.embeddings.clone(),
        targets: structure.targets().iter().map(layer).collect(),
    };
    output.show(&parts, human)
}

/// What an ONNX file says of itself.
struct Declared {
    output: Option<String>,
    input_size: Option<u32>,
}

impl Declared {
    fn of(path: &Path) -> Result<Self> {
        let graph = Model::load_graph(path)?.graph;
        let output = graph.outputs.first().map(|output| output.name.clone());
        let shape = graph.inputs.first().and_then(|input| input.shape.as_deref());
        let input_size = match shape {
            Some(&[_, _, Dim::Fixed(height), Dim::Fixed(width)]) if height == width => {
                u32::try_from(height).ok()
            }
            _ => None,
        };
        Ok(Self { output, input_size })
    }
}

fn human(parts: &Parts) -> String {
    let mut table = output::table(&["target", "weight", "in x out"], [2]);
    for layer in &parts.targets {
        let weight = if layer.part { format!("part of {}", layer.weight) } else { layer.weight.clone() };
        table.add_row([layer.target.clone(), weight, format!("{} x {}", layer.inputs, layer.outputs)]);
    }
    let mut text = format!("{}\n\n", table.trim_fmt());
    let _ = writeln!(
        text,
        "{} blocks, {} scales and biases of normalisations, token embeddings: {}",
        parts.blocks,
        parts.norms,
        if parts.embeddings.is_empty() { "none".to_owned() } else { parts.embeddings.join(", ") },
    );
    let _ = write!(
        text,
        "--targets of `artifacts build` takes globs over targets, over their last part (query, value, up, down ..), and over \
         weights with or without \".weight\"."
    );
    text
}
