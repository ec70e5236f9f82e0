//! Built programs of this workspace.

use std::{
    env,
    path::{Path, PathBuf},
};

/// A program that has not been built.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{name} is not at {}: build it with `cargo build{profile} -p {package} --bin {name}`", path.display())]
pub struct MissingBinary {
    name: String,
    package: String,
    profile: &'static str,
    path: PathBuf,
}

/// The program `name` in the target folder of the running test, which lies in `target/<profile>/deps`.
pub fn locate_binary(name: &str) -> Result<PathBuf, MissingBinary> {
    let test = env::current_exe().unwrap_or_default();
    let deps = test.parent().unwrap_or(Path::new("."));
    let folder = if deps.ends_with("deps") { deps.parent().unwrap_or(deps) } else { deps };
    let path = folder.join(format!("{name}{}", env::consts::EXE_SUFFIX));
    if path.is_file() {
        return Ok(path);
    }
    let profile = if folder.ends_with("release") { " --release" } else { "" };
    let package = if name == "fedpeft" { "fedpeft-cli" } else { name };
    Err(MissingBinary { name: name.into(), package: package.into(), profile, path })
}
