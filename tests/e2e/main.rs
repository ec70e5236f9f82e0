//! End-to-end tests: the programs as users run them, a real broker, the real runtime and backbone.

mod failures;
mod inputs;
mod services;
mod simulate;
mod support;
