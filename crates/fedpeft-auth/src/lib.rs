//! Who may do what on the broker, by NATS' decentralised JWTs: an operator vouches for accounts, an account's
//! signing keys for users, and the permissions of a user come from the key that signed it, one key per role.
//! `nats-server` checks all of it; no program of FedPEFT has to be asked.
//!
//! | file | what |
//! | --- | --- |
//! | [`role`] | roles and their permissions, and the gates between clients and services |
//! | [`claims`] | tokens and their signatures |
//! | [`keys`] | secret keys in their files |
//! | [`state`] | what was issued and revoked |
//! | [`server`] | the configuration of `nats-server` |
//! | [`authority`] | all of it in one folder: [`Authority`] |

mod authority;
mod claims;
mod error;
mod files;
mod keys;
mod role;
mod roster;
mod server;
mod state;

pub use authority::{Authority, Enrolment};
pub use error::AuthError;
pub use role::Role;
pub use server::{ServerTls, Settings};
pub use state::Issued;
