//! By what clients know one another in secure aggregation.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, bail};
use fedpeft_protocol::{ClientId, secure::IdentityKey};
use fedpeft_secagg::{ParamsError, Session, SigningKey};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

use super::public;
use crate::task::Failure;

/// A file of an identity is a seed of this many hexadecimal digits.
const DIGITS: usize = 64;

/// The identities of the hosted clients, and those that they accept of others.
pub(crate) struct Identities {
    own: BTreeMap<ClientId, SigningKey>,
    /// Whom clients sum with: nobody else. None takes the aggregator's word for it.
    roster: Option<BTreeMap<String, [u8; 32]>>,
    only_secure: bool,
}

/// A generator of secrets, seeded by the operating system.
pub(crate) fn random() -> Result<ChaCha20Rng, Failure> {
    seed().map(ChaCha20Rng::from_seed).map_err(Failure::new)
}

fn seed() -> Result<[u8; 32], getrandom::Error> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map(|()| seed)
}

impl Identities {
    /// Of `clients`: each from its file in `folder`, or new ones of this process where there is no folder. `roster` is a
    /// file that lists the clients that may be in a sum.
    pub fn new<'a>(
        clients: impl Iterator<Item = &'a ClientId>,
        folder: Option<&Path>,
        roster: Option<&Path>,
        only_secure: bool,
    ) -> anyhow::Result<Self> {
        let mut own = BTreeMap::new();
        for client in clients {
            let key = match folder {
                Some(folder) => read(&folder.join(format!("{client}.identity")))?,
                None => SigningKey::from_bytes(&seed().context("the operating system gives no random bytes")?),
            };
            own.insert(client.clone(), key);
        }
        let roster = roster.map(read_roster).transpose()?;
        for (client, key) in roster.iter().flat_map(|_| &own) {
            let known = roster.as_ref().and_then(|roster| roster.get(client.as_str()));
            if known != Some(&public(key)) {
                bail!("client {client} is not in the roster with its identity: use one roster and one folder of identities");
            }
        }
        Ok(Self { own, roster, only_secure })
    }

    /// The public half of a client's.
    pub fn public(&self, client: &ClientId) -> Option<IdentityKey> {
        self.own.get(client).map(|key| IdentityKey::new(public(key)))
    }

    /// A client's.
    pub fn of(&self, client: &ClientId) -> Result<SigningKey, Failure> {
        let missing = || Failure::new(format!("client {client} has no identity"));
        self.own.get(client).cloned().ok_or_else(missing)
    }

    /// Whether clients send their updates in secure aggregation alone.
    pub fn only_secure(&self) -> bool {
        self.only_secure
    }

    /// Whether everybody in a session is in the roster.
    pub fn check(&self, session: &Session) -> Result<(), ParamsError> {
        match &self.roster {
            Some(roster) => session.pinned(|client| roster.get(client).copied()),
            None => Ok(()),
        }
    }
}

fn read(path: &Path) -> anyhow::Result<SigningKey> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("{}: make it with `fedpeft auth enroll`", path.display()))?;
    // The text is a secret, and no error repeats it.
    let seed = hexadecimal(text.trim());
    let seed = seed.with_context(|| format!("{} does not hold {DIGITS} hexadecimal digits", path.display()))?;
    Ok(SigningKey::from_bytes(&seed))
}

/// Lines of a client's name, a space and its public key.
fn read_roster(path: &Path) -> anyhow::Result<BTreeMap<String, [u8; 32]>> {
    let text = fs::read_to_string(path).with_context(|| format!("roster {}", path.display()))?;
    let mut roster = BTreeMap::new();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    for (at, line) in lines {
        let entry = line.split_once(' ').and_then(|(client, key)| {
            Some((ClientId::new(client).ok()?.to_string(), hexadecimal(key.trim())?))
        });
        let Some((client, key)) = entry else {
            bail!("roster {} line {}: a name and {DIGITS} hexadecimal digits are expected", path.display(), at + 1);
        };
        if roster.insert(client.clone(), key).is_some() {
            bail!("roster {} line {}: client {client} is listed twice", path.display(), at + 1);
        }
    }
    Ok(roster)
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let mut bytes = [0; 32];
    if digits.len() != DIGITS {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = (value(pair[0])? * 16 + value(pair[1])?) as u8;
    }
    Some(bytes)
}
