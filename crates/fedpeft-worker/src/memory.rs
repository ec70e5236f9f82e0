//! What a client keeps between the rounds of a run: its local tensors, and its control variate where the strategy is
//! SCAFFOLD.
//!
//! A client cannot know when it sends an update whether it will count: it may be too late, or one too many. So what
//! it has after a training is kept beside what it had before, in a file named by the digest of the update, and the
//! next task says which update was the last that counts. What the client begins with then follows from the ledger of
//! the run alone, whatever was tried, refused or killed in between. The other files are forgotten.
//!
//! `<state>/runs/<run>/<client>/<digest of the update>.safetensors` holds the tensors under their names in the
//! adapter, those of a control variate behind `control/`, and in its metadata the name of the task. It is complete and on disk before the update is sent.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use fedpeft_artifacts::{CheckpointError, read_checkpoint};
use fedpeft_codec::Layout;
use fedpeft_protocol::{ClientId, Digest, RunId};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

const EXTENSION: &str = "safetensors";
/// Metadata key of the task after which a file was written.
const TASK: &str = "task";

/// Something kept that cannot be used, or cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error(
        "what client {client} had after its last counted update of run {run} is not at {path}: bring the folder of \
         --state back, or create the run anew", path = path.display()
    )]
    Lost { run: RunId, client: ClientId, path: PathBuf },
    #[error("{path}: {source}", path = path.display())]
    Damaged { path: PathBuf, source: CheckpointError },
    #[error("{path} cannot be read or written: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The folder of all runs.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    state: PathBuf,
}

/// What one client keeps of one run.
#[derive(Debug, Clone)]
pub(crate) struct Memories {
    state: PathBuf,
    run: RunId,
    client: ClientId,
    /// The last update that counts.
    counted: Option<Digest>,
}

impl Memory {
    pub fn new(state: PathBuf) -> Self {
        Self { state }
    }

    /// Those of `client` in `run`, whose last update that counts is `counted`.
    pub fn of(&self, run: &RunId, client: &ClientId, counted: Option<Digest>) -> Memories {
        Memories { state: self.state.clone(), run: run.clone(), client: client.clone(), counted }
    }

    /// Forgets runs of which nothing was kept for so long.
    pub fn forget(&self, after: Duration) {
        let Some(before) = SystemTime::now().checked_sub(after) else { return };
        for run in folders(&self.state.join("runs")) {
            let newest = folders(&run).iter().filter_map(|client| modified(client)).max();
            if newest.or_else(|| modified(&run)).is_some_and(|newest| newest < before) {
                tracing::info!(folder = %run.display(), "forgetting what clients kept of an old run");
                if let Err(error) = fs::remove_dir_all(&run) {
                    tracing::warn!(folder = %run.display(), %error, "not removed");
                }
            }
        }
    }
}

/// The folders in a folder.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

/// When something was last added to a folder.
fn modified(folder: &Path) -> Option<SystemTime> {
    fs::metadata(folder).and_then(|metadata| metadata.modified()).ok()
}

impl Memories {
    fn folder(&self) -> PathBuf {
        self.state.join("runs").join(self.run.as_str()).join(self.client.as_str())
    }

    fn path(&self, update: &Digest) -> PathBuf {
        self.folder().join(update.to_string()).with_extension(EXTENSION)
    }

    /// The tensors of `layout` after the last update that counts; none where no update counts yet.
    pub fn recall(&self, layout: &Layout) -> Result<Option<Vec<f32>>, MemoryError> {
        let Some(counted) = &self.counted else { return Ok(None) };
        let path = self.path(counted);
        let bytes = fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                MemoryError::Lost { run: self.run.clone(), client: self.client.clone(), path: path.clone() }
            }
            _ => MemoryError::Io { path: path.clone(), source },
        })?;
        read_checkpoint(&bytes, layout).map(Some).map_err(|source| MemoryError::Damaged { path, source })
    }

    /// Keeps the tensors of `layout` as they are after `update`, the answer to `task`, and forgets those of other
    /// tasks, unless they are after the last update that counts.
    pub fn keep(
        &self,
        task: &str,
        update: &Digest,
        layout: &Layout,
        values: &[f32],
    ) -> Result<(), MemoryError> {
        let folder = self.folder();
        let fail = |source| MemoryError::Io { path: folder.clone(), source };
        let bytes = serialized(task, layout, values).map_err(|error| fail(io::Error::other(error)))?;
        self.write(&folder, update, &bytes).map_err(fail)?;
        // Another answer to the same task, of a process that was killed, may be the one that counts.
        for other in fs::read_dir(&folder).map_err(fail)?.flatten().map(|entry| entry.path()) {
            let is_kept = [Some(update), self.counted.as_ref()].into_iter().flatten();
            if is_kept.map(|digest| self.path(digest)).any(|kept| kept == other) || is_of(&other, task) {
                continue;
            }
            if let Err(error) = fs::remove_file(&other) {
                tracing::warn!(path = %other.display(), %error, "not removed");
            }
        }
        Ok(())
    }

    fn write(&self, folder: &Path, update: &Digest, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let temporary = tempfile::Builder::new().prefix(".part-").tempfile_in(folder)?;
        io::Write::write_all(&mut temporary.as_file(), bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(self.path(update)).map_err(|error| error.error)?;
        // A new name is durable once its folder is, and so is that of a new folder.
        folder.ancestors().take(4).try_for_each(|folder| fs::File::open(folder)?.sync_all())
    }
}

fn serialized(task: &str, layout: &Layout, values: &[f32]) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let bytes = fedpeft_codec::encode(values);
    let views = layout.ranges().map(|(spec, range)| {
        let shape = spec.shape.iter().map(|dim| *dim as usize).collect();
        let part = bytes.get(range.start * 4..range.end * 4).unwrap_or_default();
        Ok((spec.name.as_str(), TensorView::new(Dtype::F32, shape, part)?))
    });
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    safetensors::serialize(views, Some(HashMap::from([(TASK.to_owned(), task.to_owned())])))
}

/// Whether a file was written after `task`.
fn is_of(path: &Path, task: &str) -> bool {
    let Ok(bytes) = fs::read(path) else { return false };
    let metadata =
        SafeTensors::read_metadata(&bytes).ok().and_then(|(_, metadata)| metadata.metadata().clone());
    metadata.is_some_and(|metadata| metadata.get(TASK).is_some_and(|of| of == task))
}

#[cfg(test)]
mod tests {
    use fedpeft_codec::TensorSpec;

    use super::*;

    fn layout() -> Layout {
        let spec = |name: &str, shape: &[u64]| TensorSpec { name: name.into(), shape: shape.into() };
        Layout::new(vec![spec("head.weight", &[2, 2]), spec("head.bias", &[1])]).unwrap()
    }

    fn memories(state: &Path, counted: Option<&Digest>) -> Memories {
        let (run, client) = (RunId::new("run").unwrap(), ClientId::new("client").unwrap());
        Memory::new(state.to_owned()).of(&run, &client, counted.copied())
    }

    #[test]
    fn a_client_goes_on_from_the_update_that_counts() {
        let state = tempfile::tempdir().unwrap();
        let update = |name: &str| Digest::of(name);
        let (layout, [a, b, c]) = (layout(), ["a", "b", "c"].map(update));
        let keep = |counted: Option<&Digest>, task: &str, update: &Digest, value: f32| {
            memories(state.path(), counted).keep(task, update, &layout, &[value; 5]).unwrap();
        };
        let recall = |counted: Option<&Digest>| memories(state.path(), counted).recall(&layout);
        assert_eq!(recall(None).unwrap(), None);
        keep(None, "1", &a, 1.0);
        assert_eq!(recall(Some(&a)).unwrap(), Some(vec![1.0; 5]));
        assert_eq!(recall(None).unwrap(), None, "it does not count");
        // Round 2 was too late, round 3 begins where round 1 ended.
        keep(Some(&a), "2", &b, 2.0);
        assert_eq!(recall(Some(&a)).unwrap(), Some(vec![1.0; 5]));
        keep(Some(&a), "3", &c, 3.0);
        assert!(matches!(recall(Some(&b)), Err(MemoryError::Lost { .. })));
        assert_eq!(recall(Some(&a)).unwrap(), Some(vec![1.0; 5]));
        assert_eq!(recall(Some(&c)).unwrap(), Some(vec![3.0; 5]));
    }

    #[test]
    fn answers_to_one_task_stand_beside_each_other() {
        let state = tempfile::tempdir().unwrap();
        let (layout, first, second) = (layout(), Digest::of("first"), Digest::of("second"));
        let none = memories(state.path(), None);
        none.keep("1", &first, &layout, &[1.0; 5]).unwrap();
        none.keep("1", &second, &layout, &[2.0; 5]).unwrap();
        for (counted, value) in [(first, 1.0), (second, 2.0)] {
            let recalled = memories(state.path(), Some(&counted)).recall(&layout).unwrap();
            assert_eq!(recalled, Some(vec![value; 5]));
        }
        none.keep("2", &Digest::of("third"), &layout, &[3.0; 5]).unwrap();
        assert_eq!(fs::read_dir(none.folder()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_lost_or_damaged_is_named() {
        let state = tempfile::tempdir().unwrap();
        let (layout, a) = (layout(), Digest::of("a"));
        let memories = memories(state.path(), Some(&a));
        let lost = memories.recall(&layout).unwrap_err().to_string();
        assert!(lost.contains("client client") && lost.contains("--state") && !lost.contains('\n'), "{lost}");
        memories.keep("1", &a, &layout, &[1.0; 5]).unwrap();
        fs::write(memories.path(&a), b"no tensors").unwrap();
        assert!(matches!(memories.recall(&layout), Err(MemoryError::Damaged { .. })));
    }

    #[test]
    fn old_runs_are_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let (layout, a) = (layout(), Digest::of("a"));
        let memories = memories(state.path(), Some(&a));
        memories.keep("1", &a, &layout, &[1.0; 5]).unwrap();
        let memory = Memory::new(state.path().to_owned());
        memory.forget(Duration::from_secs(3600));
        assert!(memories.recall(&layout).is_ok());
        memory.forget(Duration::ZERO);
        assert!(matches!(memories.recall(&layout), Err(MemoryError::Lost { .. })));
    }
}
