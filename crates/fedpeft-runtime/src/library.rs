//! Finding and loading the ONNX Runtime library, once per process.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use ort::environment::Environment;

use crate::{RuntimeError, error::one_line};

/// File name of the library where the system's loader looks for it.
const SYSTEM_NAME: &str = "libonnxruntime.so";

/// The loaded library. ONNX Runtime's environment is one per process: loading again returns the same one.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(crate) environment: Environment,
    library: PathBuf,
}

static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Loads the library at `explicit`, or else the first of: the path in `FEDPEFT_ORT_LIB`, the asset
    /// cache, the folder of this executable, the system's.
    ///
    /// # Errors
    /// One line that names the file and the cure, where it is missing, no library, or too old, or where the
    /// process has already loaded another one.
    pub fn load(explicit: Option<&Path>) -> Result<Self, RuntimeError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let library = locate(explicit)?;
        if let Some(runtime) = &*loaded {
            return if explicit.is_none() || runtime.library == library {
                Ok(runtime.clone())
            } else {
                Err(RuntimeError::AlreadyLoaded { loaded: runtime.library.clone(), asked: library })
            };
        }
        let fail = |reason| RuntimeError::Library { path: library.clone(), reason };
        let builder = ort::init_from(&library).map_err(|error| fail(one_line(error)))?;
        let environment = builder.with_telemetry(false).build().map_err(|error| fail(one_line(error)))?;
        tracing::info!(library = %library.display(), "loaded ONNX Runtime");
        let runtime = Self { environment, library };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }

    /// The library in use.
    pub fn library(&self) -> &Path {
        &self.library
    }
}

fn locate(explicit: Option<&Path>) -> Result<PathBuf, RuntimeError> {
    let from_environment =
        || env::var_os("FEDPEFT_ORT_LIB").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = explicit.map(Path::to_owned).or_else(from_environment) {
        // The loader resolves relative paths against the executable, people mean their working directory.
        let path = std::path::absolute(&path).unwrap_or(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(RuntimeError::Library { path, reason: "no such file".to_owned() })
        };
    }
    let executable = env::current_exe().ok();
    let folders = [asset_library_folder(), executable.and_then(|path| Some(path.parent()?.to_owned()))];
    for folder in folders.iter().flatten() {
        if let Some(path) = newest_library(folder) {
            return Ok(path);
        }
    }
    let system = ["/usr/lib", "/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    if let Some(path) = system.iter().find_map(|folder| newest_library(Path::new(folder))) {
        return Ok(path);
    }
    let searched = folders.iter().flatten().map(|folder| folder.display().to_string());
    Err(RuntimeError::LibraryNotFound {
        searched: searched.chain(["system folders".to_owned()]).collect::<Vec<_>>().join(", "),
    })
}

/// `lib` of the asset cache that `cargo xtask assets` fills.
fn asset_library_folder() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("FEDPEFT_ASSETS")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("fedpeft")))
        .or_else(|| Some(set("HOME")?.join(".cache/fedpeft")))?;
    Some(cache.join("lib"))
}

/// `libonnxruntime.so`, or the one with the highest version behind its name.
fn newest_library(folder: &Path) -> Option<PathBuf> {
    let version = |path: &PathBuf| -> Option<Vec<u32>> {
        let rest = path.file_name()?.to_str()?.strip_prefix(SYSTEM_NAME)?;
        rest.split('.').skip(1).map(|part| part.parse().ok()).collect()
    };
    let entries = std::fs::read_dir(folder).ok()?;
    let found = entries.flatten().filter_map(|entry| Some((version(&entry.path())?, entry.path())));
    found.max().map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_path_is_one_clear_line() {
        let error = Runtime::load(Some(Path::new("/nonexistent/libonnxruntime.so"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/libonnxruntime.so") && error.contains("--ort-lib"), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn a_file_that_is_no_library_is_one_clear_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a library").unwrap();
        let error = Runtime::load(Some(file.path())).unwrap_err().to_string();
        let fits = error.contains("cannot be loaded") || error.contains("already loaded");
        assert!(fits && !error.contains('\n'), "{error}");
    }

    #[test]
    fn the_highest_version_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest_library(folder.path()), None);
        for name in
            ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.31.1", "libonnxruntime_providers.so", "x"]
        {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(newest_library(folder.path()), Some(folder.path().join("libonnxruntime.so.1.31.1")));
    }
}
