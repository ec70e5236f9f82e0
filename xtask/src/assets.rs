//! The asset cache: what `cargo xtask assets` fetches and where it lies.

mod download;
mod pins;
mod signed;
mod tree;
mod unpack;

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use download::Fetched;
use pins::{ASSETS, Asset, Member};
use signed::Signed;
use unpack::Trust;

/// The fetched assets.
#[derive(Debug)]
pub struct Assets(PathBuf);

impl Assets {
    /// The cache.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The variables by which programs and tests find them; those already set stay.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let named = ASSETS
            .iter()
            .filter_map(|asset| Some((asset.variable?, self.0.join(asset.members.first()?.to))))
            .filter(|(variable, _)| !is_set(variable));
        [("FEDPEFT_ASSETS", self.0.clone())].into_iter().chain(named).collect()
    }
}

/// Fetches what is missing or damaged.
pub fn fetch() -> Result<Assets> {
    let folder = folder()?;
    let downloads = folder.join("downloads");
    fs::create_dir_all(&downloads).with_context(|| format!("cannot create {}", downloads.display()))?;
    // Two tasks at once would unpack over each other.
    let lock = File::create(folder.join(".lock"))?;
    lock.lock().with_context(|| format!("cannot lock {}", folder.display()))?;

    let mut failures = Vec::new();
    for asset in ASSETS {
        if let Err(error) = ensure(asset, &folder, &downloads) {
            failures.push(format!("{error:#}"));
        }
    }
    match failures.as_slice() {
        [] => Ok(Assets(folder)),
        failures => bail!("{}", failures.join("\nerror: ")),
    }
}

fn ensure(asset: &Asset, folder: &Path, downloads: &Path) -> Result<()> {
    // Somebody who names their own library or server need not fetch ours.
    let signed = Signed::of(asset, folder);
    let whole = asset.members.iter().all(|member| intact(member, &signed, folder))
        && asset.tree.as_ref().is_none_or(|tree| tree.intact(folder));
    if whole || asset.variable.is_some_and(is_set) {
        return Ok(());
    }
    if env::consts::OS != "linux" || env::consts::ARCH != "x86_64" {
        let cure = asset.variable.map(|variable| format!("; set {variable} to your own")).unwrap_or_default();
        if !asset.portable {
            bail!(
                "{} is pinned for x86_64 Linux, not {} {}{cure}",
                asset.name,
                env::consts::ARCH,
                env::consts::OS
            );
        }
    }
    let archive = downloads.join(asset.archive);
    if sha256(&archive).ok().as_deref() != Some(asset.sha256) {
        if let Fetched::Successor(archive) = download::download(asset, downloads)? {
            let digests = unpack::unpack(asset, &archive, Trust::Signature, folder)
                .with_context(|| format!("cannot unpack {}", archive.display()))?;
            fs::remove_file(&archive)?;
            return Signed::keep(asset, &digests, folder);
        }
        let found = sha256(&archive).with_context(|| format!("{} was not downloaded", archive.display()))?;
        if found != asset.sha256 {
            bail!(
                "{} has SHA-256 {found}, but {} is pinned: delete it and try again",
                archive.display(),
                asset.sha256
            );
        }
    }
    unpack::unpack(asset, &archive, Trust::Pins, folder)
        .with_context(|| format!("cannot unpack {}", archive.display()))?;
    fs::remove_file(&archive)?;
    Ok(())
}

fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn folder() -> Result<PathBuf> {
    let named = |variable| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("FEDPEFT_ASSETS")
        .or_else(|| named("XDG_CACHE_HOME").map(|cache| cache.join("fedpeft")))
        .or_else(|| named("HOME").map(|home| home.join(".cache/fedpeft")))
        .map(std::path::absolute)
        .context("no place for assets: set FEDPEFT_ASSETS")?
        .context("FEDPEFT_ASSETS is no usable path")
}

fn intact(member: &Member, signed: &Signed, folder: &Path) -> bool {
    sha256(&folder.join(member.to)).is_ok_and(|found| found == member.sha256 || signed.holds(member, &found))
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            len => hasher.update(&buffer[..len]),
        }
    }
}
