"""Hybrid signatures: Ed25519 (RFC 8032) and ML-DSA-65 (FIPS 204); both must hold, always.

A forger has to break both. Nothing here accepts one half, and no algorithm is ever read from the
data that is being verified: it follows from the key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from pydantic import SecretBytes

from tensorguard.crypto import canonical
from tensorguard.errors import MalformedInput, VerificationError

ED25519_KEY, ED25519_SIGNATURE, ED25519_SEED = 32, 64, 32  # bytes
ML_DSA_65_KEY, ML_DSA_65_SIGNATURE, ML_DSA_65_SEED = 1952, 3309, 32  # bytes
MAX_PUBLIC_KEY_FILE = 8192  # bytes of JSON; a real one has about 2,800


class SignatureInvalid(VerificationError):
    code = "signature_invalid"
    remedy = "Do not use this object. Fetch it again from its signer."


def unbase64(text: object, *, size: int | None = None, limit: int = 1 << 20) -> bytes:
    """Decode strict base64 of at most `limit` (or exactly `size`) bytes."""
    if not isinstance(text, str) or len(text) > 4 * (limit + 2) // 3 + 4:
        raise MalformedInput("base64 text of bounded length was expected")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedInput("this is not base64") from error
    if size is not None and len(raw) != size:
        raise MalformedInput(f"{size} bytes were expected, {len(raw)} came")
    return raw


@dataclass(frozen=True, slots=True)
class HybridSignature:
    """One message, two signatures."""

    ed25519: bytes
    ml_dsa_65: bytes


@dataclass(frozen=True)
class HybridPublicKey:
    """The two public keys (32 and 1,952 bytes) of one signer."""

    ed25519: bytes
    ml_dsa_65: bytes

    def __post_init__(self) -> None:
        if len(self.ed25519) != ED25519_KEY or len(self.ml_dsa_65) != ML_DSA_65_KEY:
            raise MalformedInput("a hybrid public key has 32 and 1,952 bytes")

    @cached_property
    def key_id(self) -> str:
        """Lower-case hex SHA-256 over both keys, in this order."""
        return hashlib.sha256(self.ed25519 + self.ml_dsa_65).hexdigest()

    @cached_property
    def _verifiers(self) -> tuple[Ed25519PublicKey, MLDSA65PublicKey]:
        try:
            return (
                Ed25519PublicKey.from_public_bytes(self.ed25519),
                MLDSA65PublicKey.from_public_bytes(self.ml_dsa_65),
            )
        except ValueError as error:
            raise MalformedInput("this is not a hybrid public key") from error

    def verify(self, message: bytes, signature: HybridSignature) -> bytes:
        """Return `message` if both signatures hold. Raises `SignatureInvalid`."""
        classical, post_quantum = self._verifiers
        try:
            classical.verify(signature.ed25519, message)
            post_quantum.verify(signature.ml_dsa_65, message)
        except InvalidSignature as error:
            raise SignatureInvalid("the signature does not match") from error
        return message

    def to_json(self, *, name: str) -> bytes:
        """Return the public key file (`*.pub.json`) that trust stores hold."""
        return canonical.encode(
            {
                "algorithm": "Ed25519+ML-DSA-65",
                "ed25519": base64.b64encode(self.ed25519).decode(),
                "key_id": self.key_id,
                "ml_dsa_65": base64.b64encode(self.ml_dsa_65).decode(),
                "name": name,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> tuple[str, HybridPublicKey]:
        """Read a public key file: the signer's name and key. Raises `MalformedInput`."""
        value = canonical.parse(data, limit=MAX_PUBLIC_KEY_FILE)
        expected = {"algorithm", "ed25519", "key_id", "ml_dsa_65", "name"}
        if not isinstance(value, dict) or value.keys() != expected:
            raise MalformedInput(f"a public key file has exactly the members {sorted(expected)}")
        if value["algorithm"] != "Ed25519+ML-DSA-65" or not isinstance(value["name"], str):
            raise MalformedInput("the public key file names another algorithm")
        key = cls(
            unbase64(value["ed25519"], size=ED25519_KEY),
            unbase64(value["ml_dsa_65"], size=ML_DSA_65_KEY),
        )
        if key.key_id != value["key_id"]:
            raise MalformedInput("the key id in the file is not that of the key")
        return value["name"], key


class HybridSigner(Protocol):
    """Signs with both algorithms. Where the private keys live is its own affair."""

    @property
    def public_key(self) -> HybridPublicKey:
        """The key that verifies what this signer signs."""
        ...

    def sign(self, message: bytes) -> HybridSignature:
        """Sign `message` with both keys."""
        ...


class SoftwareHybridSigner:
    """A signer whose two 32-byte seeds are in this process."""

    def __init__(self, ed25519_seed: SecretBytes, ml_dsa_65_seed: SecretBytes) -> None:
        self._classical = Ed25519PrivateKey.from_private_bytes(ed25519_seed.get_secret_value())
        self._post_quantum = MLDSA65PrivateKey.from_seed_bytes(ml_dsa_65_seed.get_secret_value())
        self._public = HybridPublicKey(
            self._classical.public_key().public_bytes_raw(),
            self._post_quantum.public_key().public_bytes_raw(),
        )

    @classmethod
    def generate(cls) -> SoftwareHybridSigner:
        """Make a signer with fresh keys."""
        return cls(
            SecretBytes(Ed25519PrivateKey.generate().private_bytes_raw()),
            SecretBytes(MLDSA65PrivateKey.generate().private_bytes_raw()),
        )

    @property
    def public_key(self) -> HybridPublicKey:
        """The key that verifies what this signer signs."""
        return self._public

    def sign(self, message: bytes) -> HybridSignature:
        """Sign `message` with both keys."""
        return HybridSignature(self._classical.sign(message), self._post_quantum.sign(message))
