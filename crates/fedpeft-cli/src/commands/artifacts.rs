//! `fedpeft artifacts`: build and inspect training artifacts.

use std::{
    fmt::Write as _,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use fedpeft_artifacts::manifest::{FileRef, MANIFEST_FILE, Manifest};
use fedpeft_protocol::Digest;
use serde::Serialize;

use crate::output::{self, Output};

/// What to do with artifacts.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the adapter's tensors, their size and the files of an artifact folder.
    #[command(after_help = "\
Examples:
  fedpeft artifacts inspect artifacts
  fedpeft artifacts inspect artifacts --json | jq .adapter_bytes")]
    Inspect {
        /// Artifact folder.
        folder: PathBuf,
        /// Do not compare the files with the digests in the manifest.
        #[arg(long)]
        no_verify: bool,
        #[command(flatten)]
        output: Output,
    },
}

/// Runs one of them.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Inspect { folder, no_verify, output } => inspect(&folder, !no_verify, output),
    }
}

fn inspect(folder: &Path, verify: bool, output: Output) -> Result<()> {
    let (digest, manifest) = read_manifest(folder)?;
    if verify {
        verify_files(folder, &manifest)?;
    }
    output.show(&Inspection::new(digest, &manifest), human)
}

/// Largest `manifest.json` read: a thousand times what the largest of ours takes.
const MAX_MANIFEST: u64 = 64 << 20;

/// Reads and checks the manifest of an artifact folder.
pub fn read_manifest(folder: &Path) -> Result<(Digest, Manifest)> {
    let path = folder.join(MANIFEST_FILE);
    let file = File::open(&path)
        .with_context(|| format!("{} is no artifact folder: no {MANIFEST_FILE} in it", folder.display()))?;
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    if bytes.len() as u64 > MAX_MANIFEST {
        bail!("{} is larger than {}: it is no manifest", path.display(), output::bytes(MAX_MANIFEST));
    }
    let manifest = Manifest::from_json(&bytes).with_context(|| path.display().to_string())?;
    Ok((Digest::of(&bytes), manifest))
}

/// Compares every file of the folder with the size and digest the manifest gives it.
pub fn verify_files(folder: &Path, manifest: &Manifest) -> Result<()> {
    manifest.files.all().into_iter().try_for_each(|(file, _)| verify_file(folder, file))
}

fn verify_file(folder: &Path, expected: &FileRef) -> Result<()> {
    let path = folder.join(&expected.name);
    let context = || format!("{} cannot be read", path.display());
    let file = File::open(&path).with_context(context)?;
    let size = file.metadata().with_context(context)?.len();
    if size != expected.size {
        bail!(
            "{} has {size} bytes, the manifest says {}: rebuild the artifacts or fetch them again",
            path.display(),
            expected.size
        );
    }
    let digest = Digest::of_reader(file).with_context(context)?;
    if digest != expected.digest {
        bail!(
            "{} has digest {}, the manifest says {}: rebuild the artifacts or fetch them again",
            path.display(),
            digest.short(),
            expected.digest.short()
        );
    }
    Ok(())
}

/// What `inspect` says of a folder.
#[derive(Debug, Serialize)]
struct Inspection<'a> {
    digest: Digest,
    manifest: &'a Manifest,
    adapter_values: u64,
    adapter_bytes: u64,
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
            backbone_values,
            share: adapter_values as f64 / backbone_values.max(1) as f64,
        }
    }
}

fn human(inspection: &Inspection<'_>) -> String {
    let manifest = inspection.manifest;
    let mut text = String::new();
    let shape: Vec<String> = manifest.input.shape.iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "method    {}", manifest.method);
    let _ = writeln!(text, "input     {} [N x {}]", manifest.input.name, shape.join(" x "));
    let _ = writeln!(text, "classes   {}", manifest.classes);
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
    for (name, reason) in &manifest.excluded {
        let _ = writeln!(text, "Not trained: {name}: {reason}");
    }

    let mut files = output::table(&["file", "bytes", "sha-256"], [1]);
    for (file, _) in manifest.files.all() {
        files.add_row([file.name.clone(), output::bytes(file.size), file.digest.short()]);
    }
    let _ = write!(text, "\n{}", files.trim_fmt());
    text
}
