//! Progress of what takes long, on the standard error of a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Bytes of one file after another. It disappears when dropped.
pub struct Transfer(ProgressBar);

impl Transfer {
    /// Nothing has come yet.
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes}, {bytes_per_sec}");
        Self(ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    }

    /// `done` of the `size` bytes of `file` have come.
    pub fn show(&self, file: &str, done: u64, size: u64) {
        if self.0.message() != file {
            self.0.set_message(file.to_owned());
        }
        self.0.set_length(size);
        self.0.set_position(done);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Work of unknown length. It disappears when dropped.
pub struct Work(ProgressBar);

impl Work {
    /// Begins to turn.
    pub fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// What is being done.
    pub fn show(&self, step: String) {
        self.0.set_message(step);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
