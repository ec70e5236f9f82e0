//! Folders of many files, pinned as one.

use std::{
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::sha256;

/// The files of a package below one path.
pub struct Tree {
    /// Path in the package, with a slash at its end.
    pub from: &'static str,
    /// Ending of the files that are kept.
    pub ending: &'static str,
    /// Path in the asset cache.
    pub to: &'static str,
    /// SHA-256 of what `sha256sum` prints for the files, sorted by path.
    pub sha256: &'static str,
}

impl Tree {
    /// Whether it lies in the cache, whole.
    pub fn intact(&self, cache: &Path) -> bool {
        digest(&cache.join(self.to)).is_ok_and(|found| found == self.sha256)
    }

    /// Unpacks beside its place, verifies, then moves: a folder that is there is whole.
    pub fn unpack(&self, archive: &Path, cache: &Path) -> Result<()> {
        let target = cache.join(self.to);
        let partial = target.with_extension("partial");
        for folder in [&partial, &target] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        let mut zip = ZipArchive::new(BufReader::new(File::open(archive)?))?;
        for index in 0..zip.len() {
            let mut entry = zip.by_index(index)?;
            let Some(path) = entry.enclosed_name() else { continue };
            let Ok(path) = path.strip_prefix(self.from) else { continue };
            if !entry.is_file() || !entry.name()?.ends_with(self.ending) {
                continue;
            }
            let path = partial.join(path);
            fs::create_dir_all(path.parent().unwrap_or(&partial))?;
            io::copy(&mut entry, &mut File::create(&path)?)?;
        }
        let found = digest(&partial)?;
        if found != self.sha256 {
            bail!("{} has SHA-256 {found}, but {} is pinned", self.from, self.sha256);
        }
        fs::rename(&partial, &target).with_context(|| format!("cannot write {}", target.display()))
    }
}

/// See [`Tree::sha256`].
fn digest(folder: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    let mut lines = Vec::new();
    for file in files {
        let name = file.strip_prefix(folder).map_err(io::Error::other)?.to_string_lossy().into_owned();
        lines.push((name, sha256(&file)?));
    }
    lines.sort_unstable();
    let text: String = lines.iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect();
    Ok(hex::encode(Sha256::digest(text)))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}
