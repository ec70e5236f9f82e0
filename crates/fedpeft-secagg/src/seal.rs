//! The two shares that a member sends to a holder, encrypted: ChaCha20-Poly1305 (RFC 8439) under a key that exists for this
//! one message, which is bound to session, sender and holder.

use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit,
    aead::{AeadInOut, inout::InOutBuf},
};
use curve25519_dalek::Scalar;
use x25519_dalek::SharedSecret;
use zeroize::Zeroizing;

use crate::{
    keys::{CryptoError, seal_key},
    members::Member,
    params::Session,
};

/// Bytes of two encrypted shares.
pub const SEALED: usize = 80;
const PLAIN: usize = 64;

/// A holder's shares of a member's secrets.
#[derive(Clone)]
pub struct Shares {
    /// Of the seed of its X25519 mask secret, for the case that it drops out.
    pub mask_seed: Zeroizing<Scalar>,
    /// Of the seed of the mask it puts on alone, for the case that it does not.
    pub self_seed: Zeroizing<Scalar>,
}

/// Who sends to whom, in which session.
pub struct Way<'a> {
    /// The session.
    pub session: &'a Session,
    /// The sender.
    pub from: Member,
    /// The holder.
    pub to: Member,
}

impl Way<'_> {
    /// Encrypts `shares` with what sender and holder have in common.
    pub fn seal(&self, shared: &SharedSecret, shares: &Shares) -> Result<[u8; SEALED], CryptoError> {
        let mut sealed = [0; SEALED];
        sealed[..32].copy_from_slice(shares.mask_seed.as_bytes());
        sealed[32..PLAIN].copy_from_slice(shares.self_seed.as_bytes());
        let tag = self
            .cipher(shared)?
            .encrypt_inout_detached(&[0; 12].into(), &self.bound(), InOutBuf::from(&mut sealed[..PLAIN]))
            .map_err(|_| CryptoError::Seal)?;
        sealed[PLAIN..].copy_from_slice(&tag);
        Ok(sealed)
    }

    /// Decrypts what [`Self::seal`] made.
    pub fn open(&self, shared: &SharedSecret, sealed: &[u8; SEALED]) -> Result<Shares, CryptoError> {
        let mut plain = Zeroizing::new([0; PLAIN]);
        plain.copy_from_slice(&sealed[..PLAIN]);
        let mut tag = [0; SEALED - PLAIN];
        tag.copy_from_slice(&sealed[PLAIN..]);
        self.cipher(shared)?
            .decrypt_inout_detached(
                &[0; 12].into(),
                &self.bound(),
                InOutBuf::from(&mut plain[..]),
                &tag.into(),
            )
            .map_err(|_| CryptoError::Open)?;
        let share = |half: usize| {
            let mut bytes = Zeroizing::new([0; 32]);
            bytes.copy_from_slice(&plain[32 * half..32 * (half + 1)]);
            Option::from(Scalar::from_canonical_bytes(*bytes)).map(Zeroizing::new).ok_or(CryptoError::Open)
        };
        Ok(Shares { mask_seed: share(0)?, self_seed: share(1)? })
    }

    fn cipher(&self, shared: &SharedSecret) -> Result<ChaCha20Poly1305, CryptoError> {
        let key = seal_key(self.session, self.from, self.to, shared)?;
        Ok(ChaCha20Poly1305::new((&*key).into()))
    }

    fn bound(&self) -> [u8; 40] {
        let mut bound = [0; 40];
        bound[..32].copy_from_slice(self.session.id());
        bound[32..36].copy_from_slice(&self.from.to_le_bytes());
        bound[36..].copy_from_slice(&self.to.to_le_bytes());
        bound
    }
}
