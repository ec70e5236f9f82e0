//! A real `nats-server` under the configuration that an authority writes: what each role may do works, what it
//! may not is refused.
#![allow(clippy::unwrap_used, clippy::panic, clippy::large_futures, reason = "tests")]

mod attacks;
mod credentials;
mod folder;
mod matrix;
mod upgrade;
mod work;
mod world;
