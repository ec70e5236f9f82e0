//! Where the pinned assets lie that `cargo xtask assets` fetches.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The assets of this machine.
#[derive(Debug, Clone)]
pub struct Assets {
    cache: PathBuf,
}

/// An asset that is not there.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what} is not at {}: run `cargo xtask assets`, or set {variable}", path.display())]
pub struct MissingAsset {
    /// What was looked for.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// The variable that names another place.
    pub variable: &'static str,
}

/// Assets as the environment names them, else in the cache that `cargo xtask assets` fills.
pub fn assets() -> Assets {
    let folder = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("FEDPEFT_ASSETS")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("fedpeft")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/fedpeft")))
        .unwrap_or_else(|| PathBuf::from(".fedpeft-assets"));
    Assets { cache }
}

impl Assets {
    /// `libonnxruntime.so.*`
    pub fn ort_lib(&self) -> Result<PathBuf, MissingAsset> {
        let path = self.cache.join("lib/libonnxruntime.so.1.31.1");
        found("the ONNX Runtime library", "FEDPEFT_ORT_LIB", path)
    }

    /// `nats-server`
    pub fn nats_server(&self) -> Result<PathBuf, MissingAsset> {
        found("nats-server", "FEDPEFT_NATS_SERVER", self.cache.join("bin/nats-server"))
    }

    /// `prometheus` or `promtool`.
    pub fn prometheus(&self, program: &str) -> Result<PathBuf, MissingAsset> {
        present("Prometheus", "FEDPEFT_ASSETS", self.cache.join("bin").join(program))
    }

    /// DINOv2 ViT-S/14 as ONNX.
    pub fn dinov2(&self) -> Result<PathBuf, MissingAsset> {
        present("the DINOv2 model", "FEDPEFT_ASSETS", self.cache.join("models/dinov2-vits14.onnx"))
    }

    /// Folder with the four IDX files of Fashion-MNIST.
    pub fn fashion_mnist(&self) -> Result<PathBuf, MissingAsset> {
        present("Fashion-MNIST", "FEDPEFT_ASSETS", self.cache.join("data/fashion-mnist"))
    }

    /// Folder of all-MiniLM-L6-v2: `config.json`, `model.safetensors`, `tokenizer.json`.
    pub fn minilm(&self) -> Result<PathBuf, MissingAsset> {
        present("all-MiniLM-L6-v2", "FEDPEFT_ASSETS", self.cache.join("models/all-MiniLM-L6-v2"))
    }

    /// Folder of the BBC News articles, one folder per class.
    pub fn bbc_news(&self) -> Result<PathBuf, MissingAsset> {
        present("BBC News", "FEDPEFT_ASSETS", self.cache.join("data/bbc-news"))
    }

    /// Folder of Python packages: `nats`.
    pub fn python(&self) -> Result<PathBuf, MissingAsset> {
        let nats = present("the Python client of NATS", "FEDPEFT_ASSETS", self.cache.join("python/nats"))?;
        Ok(nats.parent().unwrap_or(&nats).to_owned())
    }

    /// The folder they lie in.
    pub fn cache(&self) -> &Path {
        &self.cache
    }
}

fn found(what: &'static str, variable: &'static str, cached: PathBuf) -> Result<PathBuf, MissingAsset> {
    let path = env::var_os(variable).filter(|value| !value.is_empty()).map_or(cached, PathBuf::from);
    present(what, variable, path)
}

fn present(what: &'static str, variable: &'static str, path: PathBuf) -> Result<PathBuf, MissingAsset> {
    if path.exists() { Ok(path) } else { Err(MissingAsset { what, path, variable }) }
}
