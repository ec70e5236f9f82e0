//! By what clients know one another in secure aggregation.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, bail};
use fedpeft_protocol::{ClientId, secure::IdentityKey};
use fedpeft_secagg::{Session, SigningKey};
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
    /// Noise multiplier below which clients take part in no sum.
    least_noise: Option<f64>,
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
    /// file that lists the clients that may be in a sum, and who must have signed it.
    pub fn new<'a>(
        clients: impl Iterator<Item = &'a ClientId>,
        folder: Option<&Path>,
        roster: Option<(&Path, Option<&str>)>,
        only_secure: bool,
    ) -> anyhow::Result<Self> {
        let mut own = BTreeMap::new();
        for client in clients {
            let key = match folder {
                Some(folder) => read(&folder.join(format!("{client}.identity")))?,
                None => {
                    SigningKey::from_bytes(&seed().context("the operating system gives no random bytes")?)
                }
            };
            own.insert(client.clone(), key);
        }
        let roster = roster.map(|(path, operator)| read_roster(path, operator)).transpose()?;
        for (client, key) in roster.iter().flat_map(|_| &own) {
            let known = roster.as_ref().and_then(|roster| roster.get(client.as_str()));
            if known != Some(&public(key)) {
                bail!(
                    "client {client} is not in the roster with its identity: use one roster and one folder of identities"
                );
            }
        }
        Ok(Self { own, roster, only_secure, least_noise: None })
    }

    /// Clients take part in no sum whose noise multiplier is less than this.
    pub fn with_least_noise(self, least_noise: Option<f64>) -> Self {
        Self { least_noise, ..self }
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

    /// Whether everybody in a session is in the roster, and the noise of its sum enough.
    pub fn check(&self, session: &Session) -> Result<(), Failure> {
        if let Some(roster) = &self.roster {
            session.pinned(|client| roster.get(client).copied()).map_err(Failure::new)?;
        }
        match (self.least_noise, session.noise_multiplier()) {
            (Some(least), noise) if noise < least => Err(Failure::new(format!(
                "the noise multiplier of the sum is {noise:.4}, the client takes part from {least} on: raise \
                 privacy.noise_multiplier, or lower the worker's --least-noise-multiplier"
            ))),
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> anyhow::Result<SigningKey> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("{}: make it with `fedpeft auth enroll`", path.display()))?;
    // The text is a secret, and no error repeats it.
    let seed = hexadecimal(text.trim());
    let seed =
        seed.with_context(|| format!("{} does not hold {DIGITS} hexadecimal digits", path.display()))?;
    Ok(SigningKey::from_bytes(&seed))
}

/// Lines of a client's name, a space and its public key; the last one holds the signature of all before it.
fn read_roster(path: &Path, operator: Option<&str>) -> anyhow::Result<BTreeMap<String, [u8; 32]>> {
    let text = fs::read_to_string(path).with_context(|| format!("roster {}", path.display()))?;
    if let Some(operator) = operator {
        signed(&text, operator).with_context(|| {
            format!(
                "roster {} is not what operator {operator} signed: get it from `fedpeft auth enroll`",
                path.display()
            )
        })?;
    }
    let mut roster = BTreeMap::new();
    let lines =
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    for (at, line) in lines {
        let entry = line.split_once(' ').and_then(|(client, key)| {
            Some((ClientId::new(client).ok()?.to_string(), hexadecimal(key.trim())?))
        });
        let Some((client, key)) = entry else {
            bail!(
                "roster {} line {}: a name and {DIGITS} hexadecimal digits are expected",
                path.display(),
                at + 1
            );
        };
        if roster.insert(client.clone(), key).is_some() {
            bail!("roster {} line {}: client {client} is listed twice", path.display(), at + 1);
        }
    }
    Ok(roster)
}

fn signed(text: &str, operator: &str) -> anyhow::Result<()> {
    let last = text.trim_end().rfind("\n# ").context("it has no signature")?;
    let (body, signature) = text.split_at(last + 1);
    let signature =
        bytes::<64>(signature.trim_start_matches("# ").trim()).context("its last line is no signature")?;
    let operator = nkeys::KeyPair::from_public_key(operator).context("the operator's key is none")?;
    operator.verify(body.as_bytes(), &signature).context("its signature is wrong")
}

fn hexadecimal(text: &str) -> Option<[u8; 32]> {
    bytes(text)
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = (value(pair[0])? * 16 + value(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roster_is_taken_if_the_operator_signed_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, operator) = (folder.path().join("roster"), nkeys::KeyPair::new_operator());
        let body =
            format!("# fedpeft roster 1\na {}\n# signed by {}\n", "ab".repeat(32), operator.public_key());
        let signature = operator.sign(body.as_bytes()).unwrap();
        let digits: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(&path, format!("{body}# {digits}\n")).unwrap();
        let roster = read_roster(&path, Some(&operator.public_key())).unwrap();
        assert_eq!(roster.get("a"), Some(&[0xab; 32]));
        let other = nkeys::KeyPair::new_operator().public_key();
        assert!(
            format!("{:#}", read_roster(&path, Some(&other)).unwrap_err()).contains("signature is wrong")
        );
        let forged = body.replace("ab", "ac");
        fs::write(&path, format!("{forged}# {digits}\n")).unwrap();
        assert!(read_roster(&path, Some(&operator.public_key())).is_err());
        fs::write(&path, "a 12\n").unwrap();
        assert!(read_roster(&path, None).unwrap_err().to_string().contains("line 1"));
    }
}
