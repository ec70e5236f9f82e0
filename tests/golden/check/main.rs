//! Small random transformers through our own passes, methods and gradients, compared with what PyTorch,
//! transformers and HF peft computed for them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests and their helpers may")]

mod build;
mod case;
mod clipped;
mod compare;
mod differences;
mod draw;
mod export;
mod exports;
mod file;
mod identity;
mod methods;
mod names;
mod peft;
mod runtime;
mod sink;
