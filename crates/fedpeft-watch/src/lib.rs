//! A run in a terminal, as it happens.
//!
//! A [`State`] is a fold over what is told of a run: events, its record, reports of its rounds, in any order and told as
//! often as one likes. [`draw`] shows a state at a moment, in whatever room there is, and knows nothing else: no clock,
//! no broker, no terminal. [`svg`] makes a picture of what was drawn.

mod draw;
mod state;
mod svg;
#[cfg(test)]
mod tests;

pub use draw::draw;
pub use state::State;
pub use svg::svg;
