//! The folder of an experiment.
//!
//! ```text
//! trials/ID.json     the report of a finished trial, put there whole
//! work/ID/           a trial under way: run.toml, the simulation's store, its log; failure.txt where it failed
//! machine.json       what ran the trials
//! report.html ...    made anew from the trials, again and again
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    ExperimentError,
    machine::Machine,
    outcome::Outcome,
    trial::{Trial, TrialId},
};

/// The folder; for writing it is held by one process at a time.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: Option<File>,
}

/// Where a trial stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Status {
    /// It is done.
    Finished(Box<Outcome>),
    /// It failed, and why; the next run tries it again.
    Failed(String),
    /// It was interrupted; the next run goes on with it.
    Begun,
    /// Nothing was done.
    Missing,
}

impl Status {
    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Finished(_) => "finished",
            Self::Failed(_) => "failed",
            Self::Begun => "begun",
            Self::Missing => "missing",
        }
    }
}

/// The files of one trial.
#[derive(Debug, Clone)]
pub struct Place {
    finished: PathBuf,
    work: PathBuf,
}

impl Folder {
    /// Makes the folder where it is missing, takes it for this process, and ends what an earlier one left running.
    pub fn open(path: &Path) -> Result<Self, ExperimentError> {
        for name in ["trials", "work"] {
            let inner = path.join(name);
            fs::create_dir_all(&inner).map_err(ExperimentError::file(inner))?;
        }
        // Processes are told of absolute paths, by which they are known again.
        let path = fs::canonicalize(path).map_err(ExperimentError::file(path))?;
        let lock = path.join("lock");
        let file = File::create(&lock).map_err(ExperimentError::file(&lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ExperimentError::InUse(path)),
            Err(TryLockError::Error(error)) => return Err(ExperimentError::file(lock)(error)),
        }
        let folder = Self { path, _lock: Some(file) };
        folder.end_leftovers()?;
        folder.write("machine.json", &serde_json::to_string(&Machine::this()).unwrap_or_default())?;
        Ok(folder)
    }

    /// The folder for reading; it need not be there.
    pub fn view(path: &Path) -> Self {
        Self { path: path.to_owned(), _lock: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of a trial.
    pub fn place(&self, id: &TrialId) -> Place {
        Place {
            finished: self.path.join("trials").join(format!("{id}.json")),
            work: self.path.join("work").join(id.as_str()),
        }
    }

    /// Where a trial stands.
    pub fn status(&self, trial: &Trial) -> Result<Status, ExperimentError> {
        self.place(&trial.id).status()
    }

    /// The machine that ran trials here last; this one where none did.
    pub fn machine(&self) -> Machine {
        let remembered = fs::read(self.path.join("machine.json")).ok();
        remembered.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_else(Machine::this)
    }

    /// Writes a file of the folder, whole or not at all.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf, ExperimentError> {
        let path = self.path.join(name);
        write_whole(&path, text)?;
        Ok(path)
    }

    /// An experiment that was killed could not end its simulations, and may have left a finished one's folder.
    fn end_leftovers(&self) -> Result<(), ExperimentError> {
        let work = self.path.join("work");
        let entries = fs::read_dir(&work).map_err(ExperimentError::file(&work))?;
        for entry in entries {
            let place = entry.map_err(ExperimentError::file(&work))?.path();
            let pid = fs::read_to_string(place.join("pid")).ok().and_then(|text| text.trim().parse().ok());
            if let Some(pid) = pid {
                end(pid, &place)?;
            }
            // It was killed between putting a report in its place and clearing up.
            let id = place.file_name().unwrap_or_default().to_string_lossy();
            if self.path.join("trials").join(format!("{id}.json")).is_file() {
                fs::remove_dir_all(&place).map_err(ExperimentError::file(&place))?;
            }
        }
        Ok(())
    }
}

/// Writes a file, whole or not at all.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), ExperimentError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&partial, path)).map_err(ExperimentError::file(path))
}

impl Place {
    /// The trial's `run.toml`.
    pub fn config(&self) -> PathBuf {
        self.work.join("run.toml")
    }

    /// Where its report goes first.
    pub fn report(&self) -> PathBuf {
        self.work.join("report.json")
    }

    /// Folder for the state of its simulation.
    pub fn store(&self) -> PathBuf {
        self.work.join("store")
    }

    /// What its process prints.
    pub fn log(&self) -> PathBuf {
        self.work.join("simulate.log")
    }

    pub(crate) fn pid(&self) -> PathBuf {
        self.work.join("pid")
    }

    fn failure(&self) -> PathBuf {
        self.work.join("failure.txt")
    }

    /// Where the trial stands.
    pub fn status(&self) -> Result<Status, ExperimentError> {
        if self.finished.is_file() {
            return Ok(match Outcome::read(&self.finished)? {
                Ok(outcome) => Status::Finished(Box::new(outcome)),
                Err(reason) => Status::Failed(reason),
            });
        }
        Ok(match fs::read_to_string(self.failure()) {
            Ok(reason) => Status::Failed(reason.trim().to_owned()),
            Err(_) if self.work.is_dir() => Status::Begun,
            Err(_) => Status::Missing,
        })
    }

    /// Makes ready for a trial that is not finished: one that failed begins anew, one that was interrupted goes on.
    pub(crate) fn begin(&self, trial: &Trial) -> Result<(), ExperimentError> {
        if self.failure().exists() {
            fs::remove_dir_all(&self.work).map_err(ExperimentError::file(&self.work))?;
        }
        fs::create_dir_all(&self.work).map_err(ExperimentError::file(&self.work))?;
        write_whole(&self.config(), &format!("# {}\n{}", trial.label, trial.run))
    }

    /// Takes in the report where the run completed; otherwise notes why it failed.
    pub(crate) fn settle(&self, ended: Result<(), String>) -> Result<Status, ExperimentError> {
        let report = self.report();
        let read = match (ended, report.is_file()) {
            (_, true) => Outcome::read(&report)?,
            (Err(reason), false) => Err(reason),
            (Ok(()), false) => Err("it ended without a report".to_owned()),
        };
        match read {
            Ok(outcome) => {
                File::open(&report)
                    .and_then(|file| file.sync_all())
                    .map_err(ExperimentError::file(&report))?;
                fs::rename(&report, &self.finished).map_err(ExperimentError::file(&self.finished))?;
                fs::remove_dir_all(&self.work).map_err(ExperimentError::file(&self.work))?;
                Ok(Status::Finished(Box::new(outcome)))
            }
            Err(reason) => {
                write_whole(&self.failure(), &format!("{reason}\n"))?;
                Ok(Status::Failed(reason))
            }
        }
    }
}

/// Ends process `pid`, if it is still the one that works in `place`.
fn end(pid: i32, place: &Path) -> Result<(), ExperimentError> {
    let works_there = || {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let place = place.as_os_str().as_encoded_bytes();
        command.windows(place.len()).any(|words| words == place)
    };
    for (signal, patience) in [(Signal::TERM, 30), (Signal::KILL, 5)] {
        if !works_there() {
            return Ok(());
        }
        if let Some(pid) = Pid::from_raw(pid) {
            // It may have ended by itself just now.
            let _ = kill_process(pid, signal);
        }
        let give_up = Instant::now() + Duration::from_secs(patience);
        while works_there() && Instant::now() < give_up {
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
    if works_there() { Err(ExperimentError::Leftover { pid }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grid, outcome::tests::report};

    fn trial() -> Trial {
        Grid::parse("g", "title = 't'\nseeds = [1]\nbase = {}").unwrap().trials().unwrap().remove(0)
    }

    #[test]
    fn a_trial_is_missing_begun_failed_and_finished() {
        let (home, trial) = (tempfile::tempdir().unwrap(), trial());
        let folder = Folder::open(&home.path().join("deep")).unwrap();
        let (place, status) = (folder.place(&trial.id), || folder.status(&trial).unwrap().word());
        assert_eq!(status(), "missing");
        place.begin(&trial).unwrap();
        assert_eq!(status(), "begun");
        fs::write(place.work.join("kept"), "").unwrap();
        place.begin(&trial).unwrap();
        assert!(place.work.join("kept").exists(), "what was begun must go on");
        place.settle(Err("no broker".into())).unwrap();
        assert_eq!(folder.status(&trial).unwrap(), Status::Failed("no broker".into()));
        place.begin(&trial).unwrap();
        assert!(!place.work.join("kept").exists(), "what failed must begin anew");
        fs::write(place.report(), report(&[0.5]).replace("completed", "cancelled")).unwrap();
        assert_eq!(place.settle(Ok(())).unwrap(), Status::Failed("the run is cancelled".into()));
        place.begin(&trial).unwrap();
        fs::write(place.report(), report(&[0.5])).unwrap();
        place.settle(Ok(())).unwrap();
        assert!(status() == "finished" && !place.work.exists());
        fs::create_dir(&place.work).unwrap();
        drop(folder);
        let folder = Folder::open(&home.path().join("deep")).unwrap();
        assert!(!place.work.exists(), "a killed experiment's rest must go");
        assert_eq!(folder.machine(), Machine::this());
    }

    #[test]
    fn a_folder_has_one_writer() {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::open(home.path()).unwrap();
        assert!(matches!(Folder::open(home.path()), Err(ExperimentError::InUse(_))));
        drop(folder);
        Folder::open(home.path()).unwrap();
    }

    #[test]
    fn a_simulation_that_was_left_behind_is_ended() {
        let (home, trial) = (tempfile::tempdir().unwrap(), trial());
        let folder = Folder::open(home.path()).unwrap();
        let place = folder.place(&trial.id);
        place.begin(&trial).unwrap();
        let script = "while :; do sleep 0.05; done";
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", script, &place.store().to_string_lossy()])
            .spawn()
            .unwrap();
        fs::write(place.pid(), child.id().to_string()).unwrap();
        // Its command line is there a moment after it is.
        let command = format!("/proc/{}/cmdline", child.id());
        while fs::read(&command).unwrap().is_empty() {
            std::thread::yield_now();
        }
        let waiter = std::thread::spawn(move || child.wait().unwrap());
        drop(folder);
        Folder::open(home.path()).unwrap();
        assert!(!waiter.join().unwrap().success());
        // A number that another program got since is left alone: this process is still here.
        fs::write(place.pid(), std::process::id().to_string()).unwrap();
        Folder::open(home.path()).unwrap();
    }
}
