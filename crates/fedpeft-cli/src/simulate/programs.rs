//! Where the programs and libraries of a simulation are.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

/// Where the user says things are.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Where things are")]
pub struct Places {
    /// ONNX Runtime library [default: that of the asset cache].
    #[arg(long, value_name = "FILE", env = "FEDPEFT_ORT_LIB")]
    ort_lib: Option<PathBuf>,
    /// nats-server program [default: that of the asset cache, then of PATH].
    #[arg(long, value_name = "FILE", env = "FEDPEFT_NATS_SERVER")]
    nats_server_bin: Option<PathBuf>,
    /// Asset cache that `cargo xtask assets` fills [default: $XDG_CACHE_HOME/fedpeft or ~/.cache/fedpeft].
    #[arg(long, value_name = "DIR", env = "FEDPEFT_ASSETS")]
    assets: Option<PathBuf>,
    /// Folder for artifacts that were built [default: artifacts in the asset cache].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

impl Places {
    /// The asset cache.
    pub fn assets(&self) -> Option<PathBuf> {
        self.assets.clone().or_else(fedpeft_data::asset_dir)
    }

    /// The folder for artifacts that were built.
    pub fn cache(&self) -> Result<PathBuf> {
        match (&self.cache, self.assets()) {
            (Some(cache), _) => Ok(cache.clone()),
            (None, Some(assets)) => Ok(assets.join("artifacts")),
            (None, None) => bail!("there is no home for built artifacts: name a folder with --cache"),
        }
    }

    /// As options of another command of this program.
    pub fn arguments(&self) -> Vec<OsString> {
        let given = [
            ("--ort-lib", &self.ort_lib),
            ("--nats-server-bin", &self.nats_server_bin),
            ("--assets", &self.assets),
            ("--cache", &self.cache),
        ];
        given
            .into_iter()
            .filter_map(|(flag, path)| Some([flag.into(), path.clone()?.into()]))
            .flatten()
            .collect()
    }

    /// The ONNX Runtime library.
    pub fn ort_lib(&self) -> Result<PathBuf> {
        let path = match &self.ort_lib {
            Some(path) => path.clone(),
            None => self.asset("lib/libonnxruntime.so.1.31.1").unwrap_or_default(),
        };
        if path.is_file() {
            return Ok(path);
        }
        bail!(
            "there is no ONNX Runtime library at {:?}: run `cargo xtask assets`, or name one with --ort-lib",
            path.display().to_string()
        )
    }

    /// The `nats-server` program.
    pub fn nats_server(&self) -> Result<PathBuf> {
        let named = self.nats_server_bin.clone().or_else(|| self.asset("bin/nats-server"));
        match named.or_else(|| in_path("nats-server")) {
            Some(path) if path.is_file() => Ok(path),
            Some(path) => bail!("there is no nats-server at {}", path.display()),
            None => bail!(
                "there is no nats-server: run `cargo xtask assets`, name one with --nats-server-bin, or use a running one with --server"
            ),
        }
    }

    fn asset(&self, path: &str) -> Option<PathBuf> {
        self.assets().map(|assets| assets.join(path)).filter(|path| path.exists())
    }
}

/// A service program: beside this one, else in PATH.
pub fn service(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("."));
    let beside = folder.join(format!("{name}{}", env::consts::EXE_SUFFIX));
    if beside.is_file() {
        return Ok(beside);
    }
    match in_path(name) {
        Some(path) => Ok(path),
        None => bail!("{name} is neither in {} nor in PATH: build the whole workspace", folder.display()),
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}
