//! The disk that the broker's store lies on: small, so that it can be filled.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Room for the store of a trial many times over.
pub const SIZE_MIB: u32 = 192;
const BALLAST: &str = "ballast";

/// A file system in memory where mounting is allowed, else a plain folder, which is never full.
pub struct Disk {
    folder: PathBuf,
    mounted: bool,
}

impl Disk {
    /// A disk at `folder`, which is created.
    pub fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let size = format!("size={SIZE_MIB}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder).output();
        Self { mounted: mount.is_ok_and(|output| output.status.success()), folder }
    }

    /// Where the store may lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it can be filled.
    pub fn is_small(&self) -> bool {
        self.mounted
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut file = File::create(self.folder.join(BALLAST)).unwrap();
        let mut piece = vec![0; 1 << 20];
        while !piece.is_empty() {
            if file.write_all(&piece).is_err() {
                piece.truncate(piece.len() / 2);
            }
        }
    }

    /// Gives it back.
    pub fn relieve(&self) {
        fs::remove_file(self.folder.join(BALLAST)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a broker that is being killed may still hold files.
            let _ = Command::new("umount").arg("--lazy").arg(&self.folder).output();
        }
    }
}
