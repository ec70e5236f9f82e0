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

const SESSION: &str = "bbea8a7a57b9f306dafd3453484cb95e340f4df5a0503acce041031a83f6fc8d";
const MASK_PUBLIC: &str = "f31ab2fc409d95b7ce8ab246f7336004a59423ae1d58907244c9c536a5399b1a";
const SELF_MASK: &str = "6bd1b94841608f1d70d2aee91d491032cac7235bf84bd3d11237aec4cb62809d";
const COMMITMENT: &str = "cc7fe4ad38517e1f66276cf59ccad992c24e0e6c1d609890196259675d954a42";
const PAIR_MASK: &str = "fa9650b95ccd12acadfd0106bc8fd951ee2dde2bb6deb7bb5064d5b33c0b6131";
const SEALED: &str = "d7969b8f7c7c6e73c54680677d28efba2c5146996a216ee79894462245aab3686604a4c8ea61a96ea799acbfa95f95740bf9eba8dec65b5d2651f002a51be52d8dd513ec4ee6e90f4948591c051e4f19";
const KEYS_SIGNATURE: &str = "f8b437038a5b87810cbdbf2293fb534c13991791d919965b80e8416f00fb1165ea1f13bc277db43ca99f5b3b883f619e4d72ae08b9b638820a383a74f5dd5e0a";
const SURVIVORS: &str = "a6b77fe7d9a7a161ec2f9fb030e2bafcd97b593fa11ec92b11a979ed43276dd5";
