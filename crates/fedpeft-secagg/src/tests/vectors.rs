//! Primitives as we call them, against the vectors of their RFCs; and what we compose of them, against
//! an independent implementation (`tests/vectors.py`, with Python's `cryptography`).

use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit,
    aead::{AeadInOut, inout::InOutBuf},
};
use curve25519_dalek::Scalar;
use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};

use super::*;
use crate::{
    keys::{CryptoError, agree, commitment, mask_secret, pair_mask, self_mask},
    seal::{Shares, Way},
    sign::{PublicKeys, survivors_text},
};

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    hex::decode(hex).unwrap().try_into().unwrap()
}

/// RFC 7748, section 6.1.
#[test]
fn agreement_is_x25519() {
    let alice = StaticSecret::from(bytes("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
    let bob = StaticSecret::from(bytes("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
    let publics = [
        bytes("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"),
        bytes("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"),
    ];
    let shared = bytes("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!([&alice, &bob].map(|secret| PublicKey::from(secret).to_bytes()), publics);
    assert_eq!(agree(&alice, &publics[1]).unwrap().to_bytes(), shared);
    assert_eq!(agree(&bob, &publics[0]).unwrap().to_bytes(), shared);
    // Points of small order give the same secret to everybody.
    assert_eq!(agree(&bob, &[0; 32]).err(), Some(CryptoError::Degenerate));
    assert_eq!(
        agree(&bob, &std::array::from_fn(|at| u8::from(at == 0))).err(),
        Some(CryptoError::Degenerate)
    );
}

/// RFC 5869, appendix A.1, with the info in two pieces, as we pass it.
#[test]
fn derivation_is_hkdf() {
    let salt: [u8; 13] = bytes("000102030405060708090a0b0c");
    let mut key = [0; 42];
    let info: [u8; 10] = bytes("f0f1f2f3f4f5f6f7f8f9");
    Hkdf::<Sha256>::new(Some(&salt), &[0x0b; 22])
        .expand_multi_info(&[&info[..4], &info[4..]], &mut key)
        .unwrap();
    let expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
    assert_eq!(hex::encode(key), expected);
}

/// RFC 8439, section 2.8.2, in place and with the tag apart, as we call it.
#[test]
fn sealing_is_chacha20_poly1305() {
    let key: [u8; 32] = std::array::from_fn(|at| 0x80 + at as u8);
    let nonce: [u8; 12] = bytes("070000004041424344454647");
    let bound: [u8; 12] = bytes("50515253c0c1c2c3c4c5c6c7");
    let mut text =
        *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
                     sunscreen would be it.";
    let cipher = ChaCha20Poly1305::new(&key.into());
    let tag = cipher.encrypt_inout_detached(&nonce.into(), &bound, InOutBuf::from(&mut text[..])).unwrap();
    assert_eq!(hex::encode(tag), "1ae10b594f09e26a7e902ecbd0600691");
    assert_eq!(hex::encode(&text[..16]), "d31a8d34648e60db7b86afbc53ef7ec2");
}

/// A session and its keys, computed by another program from the description alone.
#[test]
fn what_we_compose_is_what_another_program_composes() {
    let session = session(3, complete(3, 2), 5);
    assert_eq!(hex::encode(session.id()), SESSION);
    let seed = Scalar::from(123_456_789u64);
    let secret = mask_secret(&session, 1, &seed).unwrap();
    assert_eq!(hex::encode(PublicKey::from(&secret).to_bytes()), MASK_PUBLIC);
    assert_eq!(hex::encode(self_mask(&session, 1, &seed).unwrap().bytes()), SELF_MASK);
    assert_eq!(hex::encode(commitment(&session, 1, &seed).unwrap()), COMMITMENT);
    let other = StaticSecret::from([3; 32]);
    let public = PublicKey::from(&other).to_bytes();
    let pair = pair_mask(&session, 1, 0, &secret, &public).unwrap();
    assert_eq!(hex::encode(pair.bytes()), PAIR_MASK);
    let back = pair_mask(&session, 0, 1, &other, &PublicKey::from(&secret).to_bytes()).unwrap();
    assert_eq!(pair.bytes(), back.bytes());
    let shares = Shares { mask_seed: Scalar::from(5u64).into(), self_seed: Scalar::from(6u64).into() };
    let way = Way { session: &session, from: 1, to: 0 };
    let sealed = way.seal(&agree(&secret, &public).unwrap(), &shares).unwrap();
    assert_eq!(hex::encode(sealed), SEALED);
    let keys = PublicKeys::sign(&session, 1, [1; 32], [2; 32], &identity(1));
    assert_eq!(hex::encode(keys.signature), KEYS_SIGNATURE);
    let [sharers, survivors] =
        [[0, 1, 2].as_slice(), &[0, 2]].map(|of| crate::Members::of(3, of.iter().copied()));
    assert_eq!(hex::encode(survivors_text(&session, &sharers, &survivors)), SURVIVORS);
}

const SESSION: &str = "babfc49fe4f52ed65e40a0935d0fdc08dc62bd1b65c3d7a7f7d676becdeafc2c";
const MASK_PUBLIC: &str = "63abaa371e10770a89bf3bda283651e8bcad1ad53743011495661df34aa33312";
const SELF_MASK: &str = "f373af8407d720c7337ec602eb9031ef011b51633a6f06bf2233aeb01db5c672";
const COMMITMENT: &str = "cfe3758c041de18ef9fd6d7097f7e290f10216f1872c2734ef09d3d5667ff3ef";
const PAIR_MASK: &str = "16874f13df3109dd606c4b88a144c831b3f2f6b2c30c7b3a1d344528a3869b24";
const SEALED: &str = "e5c92df53d9a074a6fa6eb1ceedd31ee21db516f0a46662db358791712f4485f85d1d3d0f0ed671bda1623bbebce6f5b8ee2b16efddfd8f259c1194129979f0115ef2cef59ead055b6952ed19ce85d98";
const KEYS_SIGNATURE: &str = "74dca840354a7b30faa13025c1a8efcd895d9403b914d2f9fcbb94628639262d1caa43c851fd06b13bd8ee6c6dc437cbfab49b4707f00d8c92d5bb252b6a6202";
const SURVIVORS: &str = "8fbbcc7b1c596e78a6bd77e0fc8f1fb9d2fa15d52f12babd8192ca41477d26a8";
