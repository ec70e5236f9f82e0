//! The folder of a simulation: the broker's store, logs, the workers' cache, and what was asked for.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::supervisor::{PROCESSES, Process};
use crate::output;

/// The folder, held for this process alone.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    temporary: Option<TempDir>,
    _lock: File,
}

impl Store {
    /// Opens `folder`, or makes a temporary one.
    pub fn open(folder: Option<&Path>) -> Result<Self> {
        let (folder, temporary) = match folder {
            Some(folder) => {
                let context = || format!("the store {} cannot be made", folder.display());
                fs::create_dir_all(folder).with_context(context)?;
                (fs::canonicalize(folder).with_context(context)?, None)
            }
            None => {
                let made = tempfile::Builder::new().prefix("fedpeft-").tempdir();
                let made = made.context("a temporary folder cannot be made")?;
                (made.path().to_owned(), Some(made))
            }
        };
        let lock = File::create(folder.join("lock"))
            .with_context(|| format!("the store {} cannot be written", folder.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("the store {} is in use by another simulation: give each its own", folder.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error)
                    .with_context(|| format!("the store {} cannot be locked", folder.display()));
            }
        }
        let store = Self { folder, temporary, _lock: lock };
        store.end_leftovers()?;
        Ok(store)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Remembers what was asked for.
    pub fn remember(&self, asked: &Value) -> Result<()> {
        let path = self.path("config.json");
        let text = serde_json::to_string_pretty(asked)?;
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
    }

    /// What was asked for the last time.
    pub fn remembered(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.path("config.json")).ok()?).ok()
    }

    /// A simulation that was killed could not end its children; they would go on with its run.
    fn end_leftovers(&self) -> Result<()> {
        let Ok(bytes) = fs::read(self.path(PROCESSES)) else { return Ok(()) };
        let listed: Vec<Process> = serde_json::from_slice(&bytes).unwrap_or_default();
        let left = || listed.iter().filter(|process| process.is_alive());
        let signal = |signal| {
            for process in left() {
                if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
                    // One that ended just now needs no signal.
                    let _ = kill_process(pid, signal);
                }
            }
        };
        for (request, patience) in [(Signal::TERM, 10), (Signal::KILL, 5)] {
            signal(request);
            let give_up = Instant::now() + Duration::from_secs(patience);
            while left().next().is_some() && Instant::now() < give_up {
                std::thread::park_timeout(Duration::from_millis(50));
            }
        }
        match left().next() {
            None => Ok(()),
            Some(process) => bail!(
                "{} of an earlier simulation (process {}) cannot be ended: end it, or use another store",
                process.name,
                process.pid
            ),
        }
    }

    /// Ends with an error; the folder is kept where it may help to understand it.
    pub fn close(self, keep: bool, error: anyhow::Error) -> anyhow::Error {
        let given = self.temporary.is_none();
        let folder = self.folder.clone();
        let logs = folder.join("logs");
        let nothing_logged = fs::read_dir(&logs).map_or(true, |mut entries| entries.next().is_none());
        match self.temporary {
            Some(temporary) if keep && !nothing_logged => drop(temporary.keep()),
            Some(_) => return error,
            None => {}
        }
        if error.is::<output::Interrupted>() {
            if given {
                output::remark(format!("the state is in {}: the same command goes on", folder.display()));
            }
            return error;
        }
        let line = output::one_line(&error);
        if nothing_logged || line.contains(&*logs.to_string_lossy()) {
            return error;
        }
        anyhow!("{line}; logs are in {}", logs.display())
    }

    /// Ends well.
    pub fn finish(self, keep: bool) -> Result<()> {
        if let Some(temporary) = self.temporary {
            if keep {
                output::remark(format!("kept {}", temporary.keep().display()));
            } else {
                temporary.close().context("the temporary folder cannot be removed")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_one_user_at_a_time_and_remembers() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Some(folder.path())).unwrap();
        let error = Store::open(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        assert_eq!(store.remembered(), None);
        store.remember(&Value::from(3)).unwrap();
        store.finish(false).unwrap();
        assert_eq!(Store::open(Some(folder.path())).unwrap().remembered(), Some(Value::from(3)));
    }

    #[test]
    fn a_temporary_store_is_kept_only_where_it_helps() {
        let store = Store::open(None).unwrap();
        let folder = store.folder().to_owned();
        store.finish(false).unwrap();
        assert!(!folder.exists());
        let store = Store::open(None).unwrap();
        let folder = store.folder().to_owned();
        fs::create_dir(folder.join("logs")).unwrap();
        fs::write(folder.join("logs/worker-1.log"), "x").unwrap();
        let error = store.close(true, anyhow!("worker-1 ended")).to_string();
        assert!(error.contains("worker-1 ended; logs are in") && folder.exists(), "{error}");
        fs::remove_dir_all(folder).unwrap();
        let store = Store::open(None).unwrap();
        let folder = store.folder().to_owned();
        assert_eq!(store.close(true, anyhow!("no broker")).to_string(), "no broker");
        assert!(!folder.exists());
    }

    #[test]
    fn processes_that_a_killed_simulation_left_are_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let program = fs::canonicalize(format!("/proc/{}/exe", child.id())).unwrap();
        let left = Process { name: "worker-1".into(), pid: child.id(), program, log: "".into() };
        // Another program that got the number of one that ended long ago must not be touched.
        let reused =
            Process { name: "x".into(), pid: std::process::id(), program: "/x".into(), log: "".into() };
        let waiter = std::thread::spawn(move || child.wait().unwrap());
        fs::write(folder.path().join(PROCESSES), serde_json::to_string(&[left, reused]).unwrap()).unwrap();
        Store::open(Some(folder.path())).unwrap();
        assert!(!waiter.join().unwrap().success());
    }
}
