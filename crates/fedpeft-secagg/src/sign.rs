//! What members sign with their identities: their keys, and who is in the sum.

use ed25519_dalek::{Signature, Signer, SigningKey};
use sha2::{Digest, Sha256};

use crate::{
    members::{Member, Members},
    params::Session,
};

/// Bytes of a member's public keys with their signature.
pub const BUNDLE: usize = 128;
/// Bytes of a signature.
pub const SIGNATURE: usize = 64;

/// A member's public keys for one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKeys {
    /// X25519 key to which shares are encrypted.
    pub seal: [u8; 32],
    /// X25519 key of pairwise masks.
    pub mask: [u8; 32],
    /// By the member's identity.
    pub signature: [u8; SIGNATURE],
}

impl PublicKeys {
    /// Signs keys.
    pub fn sign(
        session: &Session,
        member: Member,
        seal: [u8; 32],
        mask: [u8; 32],
        identity: &SigningKey,
    ) -> Self {
        Self { seal, mask, signature: identity.sign(&keys_text(session, member, &seal, &mask)).to_bytes() }
    }

    /// Whether `member` signed these keys for this session.
    pub fn genuine(&self, session: &Session, member: Member) -> bool {
        verify(session, member, &keys_text(session, member, &self.seal, &self.mask), &self.signature)
    }

    /// As they travel: key for shares, key for masks, signature.
    pub fn to_bytes(self) -> [u8; BUNDLE] {
        let mut bytes = [0; BUNDLE];
        bytes[..32].copy_from_slice(&self.seal);
        bytes[32..64].copy_from_slice(&self.mask);
        bytes[64..].copy_from_slice(&self.signature);
        bytes
    }

    /// What [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8; BUNDLE]) -> Self {
        let mut keys = Self { seal: [0; 32], mask: [0; 32], signature: [0; SIGNATURE] };
        keys.seal.copy_from_slice(&bytes[..32]);
        keys.mask.copy_from_slice(&bytes[32..64]);
        keys.signature.copy_from_slice(&bytes[64..]);
        keys
    }
}

/// What a member says when it is told who sent a masked update: the members it believes to have shared secrets, and those
/// it believes to be in the sum. All who sign the same text have been told the same.
pub fn survivors_text(session: &Session, sharers: &Members, survivors: &Members) -> [u8; 32] {
    Sha256::new_with_prefix(b"fedpeft-secagg/1 survivors")
        .chain_update(session.id())
        .chain_update(sharers.as_bytes())
        .chain_update(survivors.as_bytes())
        .finalize()
        .into()
}

/// Whether `member` signed `text`.
pub fn verify(session: &Session, member: Member, text: &[u8], signature: &[u8; SIGNATURE]) -> bool {
    session
        .identity(member)
        .is_some_and(|identity| identity.verify_strict(text, &Signature::from_bytes(signature)).is_ok())
}

/// Signs `text`.
pub fn sign(identity: &SigningKey, text: &[u8]) -> [u8; SIGNATURE] {
    identity.sign(text).to_bytes()
}

fn keys_text(session: &Session, member: Member, seal: &[u8; 32], mask: &[u8; 32]) -> [u8; 32] {
    Sha256::new_with_prefix(b"fedpeft-secagg/1 keys")
        .chain_update(session.id())
        .chain_update(member.to_le_bytes())
        .chain_update(seal)
        .chain_update(mask)
        .finalize()
        .into()
}
