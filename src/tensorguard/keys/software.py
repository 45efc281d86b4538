"""A key version whose private bytes are in this process; only the file provider holds such."""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretBytes

from tensorguard.crypto.hybrid import SoftwareHybridSigner
from tensorguard.errors import MalformedInput
from tensorguard.keys.provider import Algorithm, es256_raw

SEED_BYTES = 32
_ES256 = ec.ECDSA(hashes.SHA256())


class SoftwareKey:
    """The opened bytes of one version, ready for use: nothing is set up again per operation."""

    __slots__ = ("aead", "algorithm", "private", "public", "sign")

    def __init__(self, algorithm: Algorithm, private: bytes) -> None:
        if len(private) != (2 * SEED_BYTES if algorithm is Algorithm.hybrid else SEED_BYTES):
            raise MalformedInput("the private bytes of the key have the wrong length")
        self.algorithm, self.private, self.public = algorithm, private, b""
        self.sign: Callable[[bytes], bytes] | None = None
        self.aead: AESGCM | None = None
        match algorithm:
            case Algorithm.ed25519:
                ed25519 = Ed25519PrivateKey.from_private_bytes(private)
                self.public, self.sign = ed25519.public_key().public_bytes_raw(), ed25519.sign
            case Algorithm.es256:
                p256 = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())
                self.public = p256.public_key().public_bytes(
                    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
                )
                self.sign = lambda message: es256_raw(p256.sign(message, _ES256))
            case Algorithm.hybrid:
                hybrid = SoftwareHybridSigner(
                    SecretBytes(private[:SEED_BYTES]), SecretBytes(private[SEED_BYTES:])
                )
                self.public = hybrid.public_key.ed25519 + hybrid.public_key.ml_dsa_65
                self.sign = lambda message: (s := hybrid.sign(message)).ed25519 + s.ml_dsa_65
            case Algorithm.aes256_gcm:
                self.aead = AESGCM(private)

    @classmethod
    def generate(cls, algorithm: Algorithm) -> SoftwareKey:
        """Make a fresh key."""
        match algorithm:
            case Algorithm.es256:
                number = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value
                return cls(algorithm, number.to_bytes(SEED_BYTES, "big"))
            case Algorithm.hybrid:
                return cls(algorithm, os.urandom(2 * SEED_BYTES))
            case _:
                return cls(algorithm, os.urandom(SEED_BYTES))
