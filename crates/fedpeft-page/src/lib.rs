//! Reports for people: a [`Page`] is one HTML file that needs nothing else, with [`Table`]s and [`Chart`]s in it.
//!
//! A page has no scripts, fetches nothing, and says so in a content security policy; everything that is put into it is
//! text, and is escaped. It is readable on white and on black.

mod axis;
mod chart;
mod markdown;
mod numbers;
mod page;
mod table;

pub use axis::{XAxis, YAxis};
pub use chart::{Chart, Figure, Line, Marks, Point};
pub use markdown::inject;
pub use numbers::{bytes, grouped, percent};
pub use page::{Page, escape};
pub use table::Table;

/// What cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// A chart cannot be drawn.
    #[error("the plot {name} cannot be drawn: {message}")]
    Plot {
        /// Which.
        name: String,
        /// Why.
        message: String,
    },
    /// A table cannot be written.
    #[error("a table cannot be written as CSV: {0}")]
    Csv(#[from] csv::Error),
}
