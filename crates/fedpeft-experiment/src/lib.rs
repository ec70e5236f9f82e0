//! Experiments: a grid of runs, which of them are done, and what came of them.
//!
//! A [`Grid`] is a file: a run, axes that vary it, seeds. It expands to [`Trial`]s, each of which is a whole `run.toml`
//! and has an id made of nothing else, so that a trial that is done stays done however the grid around it changes.
//! A [`Folder`] keeps what is finished and what is under way; [`run`] starts a child process for every trial that
//! is missing. A [`Summary`] holds means and deviations over seeds, and writes itself as CSV, HTML and Markdown.
//!
//! The crate knows of `run.toml` only that it is a table with seeds in it; whoever uses it types and checks trials, and
//! says which command runs one.

mod error;
mod estimate;
mod figures;
mod folder;
mod grid;
mod html;
mod machine;
mod markdown;
mod merge;
mod outcome;
mod run;
mod spread;
mod summary;
mod tables;
mod trial;

pub use error::ExperimentError;
pub use estimate::{Estimate, Shape, calibration};
pub use fedpeft_page::{Figure, Table, inject};
pub use figures::figures;
pub use folder::{Folder, Place, Status};
pub use grid::{Axis, Grid, Value};
pub use html::page;
pub use machine::Machine;
pub use markdown::section;
pub use outcome::{Outcome, RoundPoint};
pub use run::{Event, Launch, run};
pub use spread::Spread;
pub use summary::{Group, Summary};
pub use tables::{results, rounds_csv, summary_csv};
pub use trial::{Trial, TrialId};
