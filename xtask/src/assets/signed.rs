//! Digests of programs that took the place of pinned ones, on the word of the archive that signed them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::pins::{Asset, Member};

/// What `sha256sum` prints for the files of an asset.
#[derive(Default)]
pub struct Signed(String);

impl Signed {
    /// Those of this asset, if a successor of it is in the cache.
    pub fn of(asset: &Asset, cache: &Path) -> Self {
        Self(fs::read_to_string(list(asset, cache)).unwrap_or_default())
    }

    /// Whether the member has this digest.
    pub fn holds(&self, member: &Member, digest: &str) -> bool {
        self.0.lines().any(|line| line.split_once("  ") == Some((digest, member.to)))
    }

    /// Remembers the digests of an asset's members, in their order.
    pub fn keep(asset: &Asset, digests: &[String], cache: &Path) -> Result<()> {
        let lines =
            digests.iter().zip(asset.members).map(|(digest, member)| format!("{digest}  {}\n", member.to));
        let list = list(asset, cache);
        fs::create_dir_all(list.parent().unwrap_or(cache))?;
        fs::write(&list, lines.collect::<String>())
            .with_context(|| format!("cannot write {}", list.display()))
    }
}

fn list(asset: &Asset, cache: &Path) -> PathBuf {
    cache.join("signed").join(format!("{}.sha256", asset.archive))
}

#[cfg(test)]
mod tests {
    use super::super::pins::{ASSETS, Package};
    use super::*;

    #[test]
    fn only_what_was_kept_is_held() {
        let cache = tempfile::tempdir().unwrap();
        let asset = ASSETS.iter().find(|asset| matches!(asset.package, Package::DebProgram(_))).unwrap();
        let member = &asset.members[0];
        assert!(!Signed::of(asset, cache.path()).holds(member, member.sha256));
        Signed::keep(asset, &["ab".repeat(32)], cache.path()).unwrap();
        let signed = Signed::of(asset, cache.path());
        assert!(
            signed.holds(member, &"ab".repeat(32))
                && !signed.holds(member, "")
                && !signed.holds(member, "ab")
        );
    }
}
