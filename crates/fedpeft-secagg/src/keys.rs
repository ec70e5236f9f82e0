//! Keys of a session, each for one purpose: HKDF-SHA256 (RFC 5869) with the session's digest as salt, and purpose and
//! members as info.

use curve25519_dalek::Scalar;
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::Zeroizing;

use crate::{members::Member, params::Session};

/// A primitive that refused its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// HKDF was asked for too many bytes.
    #[error("a key could not be derived")]
    Derive,
    /// A ChaCha20 stream has 256 GiB.
    #[error("an update is longer than a mask can be")]
    Stream,
    /// An X25519 public key of small order: the shared secret would not depend on ours.
    #[error("a public key is a point of small order")]
    Degenerate,
    /// Encryption refused its input.
    #[error("shares could not be encrypted")]
    Seal,
    /// A ciphertext that was changed, or made for somebody else, another round or by another key.
    #[error("a ciphertext is not genuine")]
    Open,
}

/// Key of a ChaCha20 stream.
#[derive(Clone)]
pub struct StreamKey(Zeroizing<[u8; 32]>);

impl StreamKey {
    /// The key itself.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for StreamKey {
    fn from(key: [u8; 32]) -> Self {
        Self(Zeroizing::new(key))
    }
}

/// The X25519 secret whose seed is shared: a server that recovers the seed has the secret.
pub fn mask_secret(session: &Session, member: Member, seed: &Scalar) -> Result<StaticSecret, CryptoError> {
    derive(session, "mask key", [member, member], seed.as_bytes()).map(|key| StaticSecret::from(*key))
}

/// Key of the mask that `member` puts on alone.
pub fn self_mask(session: &Session, member: Member, seed: &Scalar) -> Result<StreamKey, CryptoError> {
    derive(session, "self mask", [member, member], seed.as_bytes()).map(StreamKey)
}

/// What `member` binds itself to when it shares the seed of its own mask: a server that recovers another seed knows
/// that shares were wrong. The seed has 252 bits of entropy, so its digest says nothing of it.
pub fn commitment(session: &Session, member: Member, seed: &Scalar) -> Result<[u8; 32], CryptoError> {
    derive(session, "commitment", [member, member], seed.as_bytes()).map(|key| *key)
}

/// Key of the mask that two members put on together, one adding and one subtracting it.
pub fn pair_mask(
    session: &Session,
    one: Member,
    other: Member,
    secret: &StaticSecret,
    public: &[u8; 32],
) -> Result<StreamKey, CryptoError> {
    let shared = agree(secret, public)?;
    derive(session, "pair mask", [one.min(other), one.max(other)], shared.as_bytes()).map(StreamKey)
}

/// Key that encrypts what `from` sends to `to`, once.
pub fn seal_key(
    session: &Session,
    from: Member,
    to: Member,
    shared: &SharedSecret,
) -> Result<Zeroizing<[u8; 32]>, CryptoError> {
    derive(session, "shares", [from, to], shared.as_bytes())
}

/// X25519 (RFC 7748).
pub fn agree(secret: &StaticSecret, public: &[u8; 32]) -> Result<SharedSecret, CryptoError> {
    let shared = secret.diffie_hellman(&PublicKey::from(*public));
    if shared.was_contributory() { Ok(shared) } else { Err(CryptoError::Degenerate) }
}

fn derive(
    session: &Session,
    purpose: &str,
    members: [Member; 2],
    secret: &[u8],
) -> Result<Zeroizing<[u8; 32]>, CryptoError> {
    let [one, other] = members.map(Member::to_le_bytes);
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(session.id()), secret)
        .expand_multi_info(&[b"fedpeft-secagg/1 ", purpose.as_bytes(), b"\0", &one, &other], &mut *key)
        .map_err(|_| CryptoError::Derive)?;
    Ok(key)
}
