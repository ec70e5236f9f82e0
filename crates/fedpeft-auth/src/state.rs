//! What was issued to whom, and what of it was revoked.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use fedpeft_protocol::ClientId;
use serde::{Deserialize, Serialize};

use crate::{AuthError, Role, Settings, claims::Seconds, files::write_private};

/// Credentials that were issued. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Holder: the client, the worker, or the service.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Clients it speaks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<ClientId>,
    /// Public key.
    pub key: String,
    /// When.
    pub issued: u64,
    /// Until when; for ever where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Since when they are void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
}

impl Issued {
    /// Neither revoked nor expired at `now`.
    pub fn is_valid(&self, now: u64) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|expires| now < expires)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    pub settings: Settings,
    /// When the accounts changed last: a server takes a token only if it is newer than its own.
    pub updated: Seconds,
    pub issued: Vec<Issued>,
}

const VERSION: u32 = 1;

impl State {
    pub fn new(settings: Settings) -> Self {
        Self { version: VERSION, settings, updated: now(), issued: Vec::new() }
    }

    pub fn read(path: &Path) -> Result<Self, AuthError> {
        let fail = |reason: String| AuthError::State { path: path.to_owned(), reason };
        let bytes = fs::read(path).map_err(|error| fail(error.to_string()))?;
        let state: Self = serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string()))?;
        match state.version {
            VERSION => Ok(state),
            other => Err(fail(format!("it has version {other}, this program knows {VERSION}"))),
        }
    }

    pub fn write(&self, path: &Path) -> Result<(), AuthError> {
        let text =
            serde_json::to_string_pretty(self).map_err(|error| AuthError::Encode(error.to_string()))?;
        write_private(path, &format!("{text}\n"))
    }

    /// Void keys of an account, and since when. Those that have expired need no mention.
    pub fn revocations(&self, clients: bool) -> BTreeMap<String, Seconds> {
        let lasting = |one: &&Issued| one.expires.is_none_or(|expires| self.updated < expires);
        let of_account =
            self.issued.iter().filter(|one| (one.role == Role::Client) == clients).filter(lasting);
        of_account.filter_map(|one| Some((one.key.clone(), one.revoked?))).collect()
    }

    /// The accounts change: their tokens get a time of their own.
    pub fn touch(&mut self) {
        self.updated = now().max(self.updated + 1);
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> Seconds {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
