"""Computes the constants of `src/tests/vectors.rs` from the protocol's description, with Python's `cryptography`.

    python3 crates/fedpeft-secagg/tests/vectors.py
"""

import hashlib
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def u32(number):
    return struct.pack("<I", number)


def identity(member):
    return Ed25519PrivateKey.from_private_bytes(struct.pack("<Q", member) + bytes([7] * 24))


def text(value):
    return u32(len(value)) + value


# Run "run", round 3, three clients, complete graph, threshold 2, quorum 2, five values; 16 bits of precision and weights up
# to 100 make sums of 3 x 6,553,600: 25 bits and a sign.
encoding = struct.pack("<BB", 26, 16) + struct.pack("<fII", 1.0, 0, 100) + struct.pack("<QQ", 0, 0)
agreed = text(b"run") + text(u32(3))
for member in range(3):
    agreed += text(f"client-{member:04}".encode()) + text(identity(member).public_key().public_bytes_raw())
for number in (0, 2, 2, 5):
    agreed += text(u32(number))
session = hashlib.sha256(b"fedpeft-secagg/1 session" + agreed + text(encoding)).digest()


def derive(purpose, one, other, secret):
    info = b"fedpeft-secagg/1 " + purpose + b"\0" + u32(one) + u32(other)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=session, info=info).derive(secret)


seed = (123456789).to_bytes(32, "little")
secret = X25519PrivateKey.from_private_bytes(derive(b"mask key", 1, 1, seed))
public = secret.public_key().public_bytes_raw()
other = X25519PrivateKey.from_private_bytes(bytes([3] * 32)).public_key().public_bytes_raw()
shared = secret.exchange(X25519PublicKey.from_public_bytes(other))
plain = (5).to_bytes(32, "little") + (6).to_bytes(32, "little")
sealed = ChaCha20Poly1305(derive(b"shares", 1, 0, shared)).encrypt(bytes(12), plain, session + u32(1) + u32(0))
keys = hashlib.sha256(b"fedpeft-secagg/1 keys" + session + u32(1) + bytes([1] * 32) + bytes([2] * 32)).digest()
survivors = hashlib.sha256(b"fedpeft-secagg/1 survivors" + session + bytes([0b111]) + bytes([0b101])).digest()

for name, value in {
    "SESSION": session,
    "MASK_PUBLIC": public,
    "SELF_MASK": derive(b"self mask", 1, 1, seed),
    "COMMITMENT": derive(b"commitment", 1, 1, seed),
    "PAIR_MASK": derive(b"pair mask", 0, 1, shared),
    "SEALED": sealed,
    "KEYS_SIGNATURE": identity(1).sign(keys),
    "SURVIVORS": survivors,
}.items():
    print(f'const {name}: &str = "{value.hex()}";')
