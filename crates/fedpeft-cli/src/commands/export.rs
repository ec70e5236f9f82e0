//! `fedpeft export`: what was trained, for those who use it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use fedpeft_artifacts::{ArtifactFolder, read_checkpoint};
use fedpeft_bus::{Bus, BusError};
use fedpeft_codec::Scope;
use fedpeft_export::{
    ExportError, Exported, ExportedFile, Format, Formats, Step, Trained, export, read_trained,
};
use fedpeft_protocol::{Digest, Round, RunId, run::RunRecord};
use fedpeft_registry::{Cache, pull};
use serde::Serialize;

use crate::{
    connect::{Connection, block_on},
    output::{self, Output},
    progress::{Transfer, Work},
    records,
};

/// Write what a run trained as an ONNX model, safetensors or an HF peft folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
onnx         model.onnx: inputs -> logits, of standard operators alone. LoRA, DoRA and IA3 are merged into the
             weights; other methods keep their nodes.
safetensors  adapter.safetensors: the adapter's tensors under their names, with the method in the metadata; of
             lora_exact, what the factors do not hold as well.
peft         peft/: LoRA, DoRA or IA3 as a folder that HF peft loads, with the head in head.safetensors. Modules are
             called as in the model that the artifacts were built from. Not after lora_exact: the folder has no place for
             what the factors do not hold.

Examples:
  fedpeft export --run trial-7 -o exported
  fedpeft export --run trial-7 --round 5 -o after-five --format onnx
  fedpeft export --run personal --local state/runs/personal/hospital-a/5d1c...e0.safetensors -o hospital-a
  fedpeft export --artifacts vit-lora --checkpoint adapter.safetensors -o exported --json")]
#[group(id = "source", required = true, multiple = false, args = ["run", "artifacts"])]
pub struct Args {
    /// Run whose global adapter to export.
    #[arg(long, value_name = "RUN")]
    run: Option<RunId>,
    /// Round after which to take the adapter [default: the last that is committed].
    #[arg(long, value_name = "K", conflicts_with = "artifacts")]
    round: Option<Round>,
    /// Artifact folder that the adapter was trained with.
    #[arg(long, value_name = "DIR")]
    artifacts: Option<PathBuf>,
    /// Adapter as safetensors [default: the one that training begins with].
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    checkpoint: Option<PathBuf>,
    /// Of a run that keeps tensors at its clients (training.local): those of one client, from the state folder of its
    /// worker, runs/RUN/CLIENT/, for a model of that client.
    #[arg(long, value_name = "FILE", requires = "run")]
    local: Option<PathBuf>,
    /// Folder to write; it must be new or empty.
    #[arg(short, long = "out", value_name = "DIR")]
    out: PathBuf,
    /// What to write, of onnx, safetensors and peft [default: all that can express the method].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    format: Vec<Format>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// What was exported, as JSON.
#[derive(Debug, Serialize)]
struct Summary {
    folder: PathBuf,
    method: String,
    artifacts: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    round: Option<Round>,
    files: Vec<ExportedFile>,
    skipped: Vec<Skipped>,
}

/// A format that cannot express the adapter.
#[derive(Debug, Serialize)]
struct Skipped {
    format: Format,
    reason: String,
}

/// Where the adapter is from.
struct Source {
    folder: ArtifactFolder,
    values: Vec<f32>,
    /// What its LoRA factors do not hold, where there is something.
    residual: Option<Vec<f32>>,
    run: Option<(RunId, Round)>,
}

/// Runs it.
pub fn run(args: Args) -> Result<()> {
    // Nothing is fetched for a destination that cannot be written.
    if std::fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(ExportError::Occupied(args.out).into());
    }
    let formats = match args.format.is_empty() {
        true => Formats::Applicable,
        false => Formats::Only(args.format.into_iter().collect::<BTreeSet<_>>()),
    };
    match (args.run, args.artifacts) {
        (Some(run), _) => {
            let fetched = tempfile::tempdir().context("a temporary folder cannot be made")?;
            let what = Wanted { run, round: args.round, local: args.local };
            let source = block_on(Box::pin(fetch(args.connection, what, fetched.path())))?;
            write(source, &formats, args.out, args.output)
        }
        (None, Some(artifacts)) => {
            let folder = ArtifactFolder::open(artifacts)?;
            folder.verify()?;
            let (values, residual) = match &args.checkpoint {
                Some(checkpoint) => read_trained(checkpoint, folder.manifest())?,
                None => (folder.initial_adapter()?, None),
            };
            write(Source { folder, values, residual, run: None }, &formats, args.out, args.output)
        }
        (None, None) => bail!("give --run or --artifacts"),
    }
}

/// The adapter of a run.
struct Wanted {
    run: RunId,
    round: Option<Round>,
    local: Option<PathBuf>,
}

/// Fetches the artifacts of a run into `folder`, and its adapter.
async fn fetch(connection: Connection, wanted: Wanted, folder: &Path) -> Result<Source> {
    let Wanted { run, round, local } = wanted;
    let bus = connection.open().await?;
    let record = records::record(&bus, &run).await?;
    let Kept { round, adapter, residual } = kept(&bus, &record, round).await?;
    let bar = Transfer::new();
    let cache = Cache::new(folder);
    let pulled =
        pull(&bus, &record.manifest, &cache, false, |file, done, size| bar.show(file, done, size)).await;
    drop(bar);
    let folder = ArtifactFolder::open(pulled?.folder)?;
    let scope = Scope::new(&folder.manifest().adapter, &record.spec.training.local)?;
    let local = local_values(&run, &scope, local.as_deref())?;
    let layout = scope.shared();
    let bytes = match bus.get_blob(&adapter, layout.bytes()).await {
        Ok((bytes, _)) => bytes,
        Err(BusError::NoBlob { .. }) => bail!("the adapter of run {run} after round {round} was not kept"),
        Err(error) => return Err(error.into()),
    };
    let shared = fedpeft_codec::decode(&bytes, layout)
        .with_context(|| format!("the adapter of run {run} after round {round} is not of its artifacts"))?;
    let residual = match (residual, folder.manifest().residual()?) {
        (Some(digest), Some(layout)) => {
            let (bytes, _) = bus.get_blob(&digest, layout.bytes()).await.with_context(|| {
                format!("what the factors of run {run} do not hold after round {round} cannot be read")
            })?;
            Some(fedpeft_codec::decode(&bytes, &layout)?)
        }
        _ => None,
    };
    Ok(Source { folder, values: scope.join(&shared, &local), residual, run: Some((run, round)) })
}

/// The tensors that a run keeps at its clients, as one of them has them; none where it keeps none.
fn local_values(run: &RunId, scope: &Scope, file: Option<&Path>) -> Result<Vec<f32>> {
    match (scope.local(), file) {
        (None, None) => Ok(Vec::new()),
        (Some(layout), Some(file)) => {
            let bytes = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
            read_checkpoint(&bytes, layout).with_context(|| format!("{}", file.display()))
        }
        (Some(layout), None) => bail!(
            "run {run} keeps {} of its {} adapter tensors at its clients: give those of one as --local, from its \
             worker's state folder",
            layout.tensors().len(),
            scope.whole().tensors().len()
        ),
        (None, Some(_)) => bail!("run {run} keeps no tensors at its clients: leave out --local"),
    }
}

/// What there is after a round.
struct Kept {
    round: Round,
    /// The global adapter.
    adapter: Digest,
    /// What its LoRA factors do not hold, where the run keeps that.
    residual: Option<Digest>,
}

/// What there is after the round asked for.
async fn kept(bus: &Bus, record: &RunRecord, round: Option<Round>) -> Result<Kept> {
    let Some(round) = round.filter(|round| *round != record.round) else {
        return Ok(Kept { round: record.round, adapter: record.adapter, residual: record.residual });
    };
    let committed = match record.round {
        0 => "no round yet".to_owned(),
        last => format!("rounds 1 to {last}"),
    };
    let view = records::view(bus, &record.run).await?;
    let report = view.rounds.iter().find(|report| report.round == round);
    let report =
        report.ok_or_else(|| anyhow!("run {} has committed {committed}, not {round}", record.run))?;
    Ok(Kept { round, adapter: report.adapter, residual: report.residual })
}

fn write(source: Source, formats: &Formats, out: PathBuf, output: Output) -> Result<()> {
    let work = Work::new();
    let trained = Trained { adapter: &source.values, residual: source.residual.as_deref() };
    let exported = export(&source.folder, trained, formats, &out, |step| {
        work.show(match step {
            Step::Merging => "merging the adapter into the backbone".to_owned(),
            Step::Writing(format) => format!("writing {format}"),
        });
    });
    drop(work);
    let Exported { files, skipped } = exported?;
    let (run, round) = source.run.unzip();
    let summary = Summary {
        folder: out,
        method: source.folder.manifest().method.to_string(),
        artifacts: source.folder.digest(),
        run,
        round,
        files,
        skipped: skipped.into_iter().map(|(format, reason)| Skipped { format, reason }).collect(),
    };
    output.show(&summary, human)
}

fn human(summary: &Summary) -> String {
    let mut table = output::table(&["file", "bytes"], [1]);
    for file in &summary.files {
        let path = summary.folder.join(&file.name);
        table.add_row([path.display().to_string(), output::bytes(file.size)]);
    }
    let skipped = summary.skipped.iter().map(|skipped| format!("\n{}: {}", skipped.format, skipped.reason));
    table.trim_fmt() + &skipped.collect::<String>()
}
