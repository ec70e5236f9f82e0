//! What goes wrong with grids and their folders.

use std::path::PathBuf;

/// A grid that cannot be used, or a folder that cannot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// The file is no grid.
    #[error("{file} line {line}: {message}")]
    Syntax {
        /// The grid file.
        file: String,
        /// Line of the mistake.
        line: usize,
        /// What the reader says.
        message: String,
    },
    /// The grid contradicts itself.
    #[error("{file}: {message}")]
    Grid {
        /// The grid file.
        file: String,
        /// What is wrong, and the cure.
        message: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else works in the folder.
    #[error("{} is in use by another experiment: wait for it, or name another folder with --output", .0.display())]
    InUse(PathBuf),
    /// A process that an experiment left behind does not end.
    #[error("process {pid} of an earlier experiment cannot be ended: end it, or use another folder")]
    Leftover {
        /// Its process id.
        pid: i32,
    },
    /// A report cannot be understood.
    #[error("{} is no report of a run: {message}", path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        message: String,
    },
    /// A plot or a table cannot be shown.
    #[error(transparent)]
    Page(#[from] fedpeft_page::PageError),
}

impl ExperimentError {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
