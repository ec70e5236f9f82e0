//! Clocks that jump: libfaketime, preloaded into one process, reads the offset of its wall clock from a file.
//! Monotonic clocks stay as they are, as they do when a real clock is set.

use std::{
    fs,
    path::{Path, PathBuf},
};

use fedpeft_testkit::assets;
use tokio::process::Command;

/// The wall clock of one process. Where libfaketime is not there, it is the machine's.
#[derive(Clone)]
pub struct Clock {
    offset: PathBuf,
    library: Option<PathBuf>,
}

impl Clock {
    /// A clock that goes right, whose offset lies in the file `offset`.
    pub fn new(offset: PathBuf) -> Self {
        let clock = Self { offset, library: library() };
        clock.set(0);
        clock
    }

    /// Makes `command` go by this clock.
    pub fn preload(&self, command: &mut Command) {
        let Some(library) = &self.library else { return };
        command
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.offset)
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DISABLE_SHM", "1")
            .env("NO_FAKE_STAT", "1");
    }

    /// Sets the clock to so many seconds after the true time.
    pub fn set(&self, seconds: i64) {
        write_whole(&self.offset, &format!("{seconds:+}"));
    }
}

/// The library, if clocks can be made to jump.
pub fn library() -> Option<PathBuf> {
    Some(assets().cache().join("lib/libfaketimeMT.so.1")).filter(|path| path.is_file())
}

/// By renaming: the process never reads half of it.
fn write_whole(path: &Path, text: &str) {
    let part = path.with_extension("part");
    fs::write(&part, text).unwrap();
    fs::rename(part, path).unwrap();
}
