"""What the rest of TensorGuard may ask of key custody: use a key, never have it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from tensorguard.crypto import canonical
from tensorguard.crypto.hybrid import (
    ED25519_KEY,
    ED25519_SIGNATURE,
    HybridPublicKey,
    HybridSignature,
    SignatureInvalid,
)
from tensorguard.errors import (
    ConfigurationError,
    Conflict,
    InputError,
    NotFound,
    Unavailable,
    VerificationError,
)

KeyId = NewType("KeyId", str)
KEY_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # a DNS label: safe as a file name
PREFIX_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")  # names our keys in a shared custody
P256_COORDINATE = 32  # bytes
DATA_KEY_BYTES = 32  # a data key is an AES-256 key
MAX_DATA_KEY = 64  # bytes that one wrap takes
MAX_WRAPPED = 4096  # bytes; no custody makes a longer one out of 64
VERSION_BYTES = 4  # a wrapped key begins with the version that wrapped it


class BadKeyId(InputError):
    code = "bad_key_id"
    remedy = "Use 1 to 63 of a-z, 0-9 and -, not starting or ending with -."


class KeyNotFound(NotFound):
    code = "key_not_found"
    remedy = (
        "List the keys with `tensorguard keys list`, or create it with `tensorguard keys create`."
    )


class KeyExists(Conflict):
    code = "key_exists"
    remedy = "Choose another key id, or rotate the key that exists."


class KeyUnusable(VerificationError):
    """The stored key does not open: wrong master, edited, swapped or rolled back."""

    code = "key_unusable"
    remedy = "Check the master key and restore the key file from a backup that you trust."


class WrongContext(VerificationError):
    code = "wrong_context"
    remedy = (
        "Unwrap with the key, version, purpose and tenant under which the data key was wrapped."
    )


class WrongKeyUse(InputError):
    code = "wrong_key_use"
    remedy = "Use a key whose algorithm and purpose fit the operation."


class KeyDisabled(Conflict):
    code = "key_disabled"
    remedy = "Enable the key with `tensorguard keys enable`, or use another one."


class KeyRetired(Conflict):
    """The version was retired (or waits for destruction): it opens nothing any more."""

    code = "key_retired"
    remedy = "Use what was wrapped anew under a later version; a retired one never comes back."


class KeyDestroyed(KeyRetired):
    code = "key_destroyed"
    remedy = "What this version protected is gone. Restore the data from its source."


class BadTransition(Conflict):
    code = "key_transition"
    remedy = (
        "Versions go pending → active → decrypt-only → retired → destroyed: rotate before you "
        "retire, retire before you destroy."
    )


class KeyChanged(Conflict):
    code = "key_changed"
    remedy = "Someone else changed this key at the same time. Look at it and decide again."


class KeyCustodyDown(Unavailable):
    code = "key_custody_down"
    remedy = "Bring the key provider back; nothing falls back to another one."


class KeyCustodyTimeout(KeyCustodyDown):
    code = "key_custody_timeout"
    remedy = "The key provider did not answer in time; look at its load and the way to it."


class KeyCustodyThrottled(KeyCustodyDown):
    code = "key_custody_throttled"
    remedy = "The key provider limits the rate of calls; raise the quota or cache data keys longer."


class KeyCustodySealed(KeyCustodyDown):
    code = "key_custody_sealed"
    remedy = "Unseal the key provider."


class KeyCustodyDenied(KeyCustodyDown):
    code = "key_custody_denied"
    remedy = "Give this process's identity (PIN, token or role) the rights that docs/key-providers.md lists."


class KeyProviderUnusable(ConfigurationError):
    code = "key_provider"
    remedy = (
        "Set TG_KEY_PROVIDER to a provider that this installation supports, and make it reachable."
    )


class Algorithm(StrEnum):
    """What a key does. The algorithm follows from the key, never from the data."""

    ed25519 = "Ed25519"  # RFC 8032
    es256 = "ES256"  # ECDSA P-256 with SHA-256, signature as r ‖ s (RFC 7518, 3.4)
    hybrid = "Ed25519+ML-DSA-65"  # RFC 8032 and FIPS 204, both required
    aes256_gcm = "AES-256-GCM"  # wraps data keys

    @property
    def signs(self) -> bool:
        """True for signing keys, False for key-encryption keys."""
        return self is not Algorithm.aes256_gcm


class Purpose(StrEnum):
    """What a key is for. A key made for one purpose is refused for another."""

    pack_signing = "pack-signing"
    audit_head = "audit-head"
    fleet_ca = "fleet-ca"
    token_signing = "token-signing"  # noqa: S105 - a purpose, not a password
    data_at_rest = "data-at-rest"


class KeyState(StrEnum):
    """Where a key version is in its life."""

    pending = "pending"
    active = "active"
    decrypt_only = "decrypt-only"
    retired = "retired"
    destroyed = "destroyed"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """All that may be known of a key version without using it.

    `disabled` speaks of the whole key; `destroy_at` is set while a retired version waits for its
    destruction.
    """

    key_id: KeyId
    version: int
    algorithm: Algorithm
    purpose: Purpose
    state: KeyState
    created: datetime
    disabled: bool = False
    destroy_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature and the key version that made it."""

    key_id: KeyId
    version: int
    algorithm: Algorithm
    value: bytes


@dataclass(frozen=True, slots=True)
class DataKey:
    """A fresh data key: use `plaintext` now, store only `wrapped`."""

    plaintext: bytes
    wrapped: bytes

    def __repr__(self) -> str:
        return f"DataKey({len(self.plaintext)} bytes)"


@dataclass(frozen=True, slots=True)
class WrapContext:
    """What a wrapped data key is bound to; it opens under nothing else."""

    purpose: str
    tenant: str

    def associated_data(self, key_id: KeyId, version: int) -> bytes:
        """Return the canonical bytes that authenticate a wrapped key."""
        return canonical.encode(
            {
                "key_id": key_id,
                "purpose": self.purpose,
                "tenant": self.tenant,
                "version": version,
            }
        )


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half of one key version.

    `value` is 32 raw bytes (Ed25519), DER SubjectPublicKeyInfo (ES256), or both raw keys in the
    order of the name (hybrid).
    """

    key_id: KeyId
    version: int
    algorithm: Algorithm
    value: bytes

    @property
    def kid(self) -> str:
        """The key id of JOSE headers: id and version."""
        return f"{self.key_id}.{self.version}"

    def verify(self, message: bytes, signature: bytes) -> bytes:
        """Return `message` if `signature` holds. Raises `SignatureInvalid`."""
        try:
            match self.algorithm:
                case Algorithm.ed25519:
                    Ed25519PublicKey.from_public_bytes(self.value).verify(signature, message)
                case Algorithm.es256:
                    self._verify_es256(message, signature)
                case Algorithm.hybrid:
                    self.hybrid().verify(
                        message,
                        HybridSignature(
                            signature[:ED25519_SIGNATURE], signature[ED25519_SIGNATURE:]
                        ),
                    )
                case Algorithm.aes256_gcm:
                    raise WrongKeyUse("a key-encryption key verifies nothing")
        except (InvalidSignature, ValueError) as error:
            raise SignatureInvalid("the signature does not match") from error
        return message

    def _verify_es256(self, message: bytes, signature: bytes) -> None:
        if len(signature) != 2 * P256_COORDINATE:
            raise SignatureInvalid("an ES256 signature has 64 bytes")
        r, s = signature[:P256_COORDINATE], signature[P256_COORDINATE:]
        der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
        self.ec().verify(der, message, ec.ECDSA(hashes.SHA256()))

    def ec(self) -> ec.EllipticCurvePublicKey:
        """Return the P-256 key. Raises `WrongKeyUse` for another algorithm."""
        if self.algorithm is not Algorithm.es256:
            raise WrongKeyUse(f"{self.key_id} is not an ES256 key")
        key = serialization.load_der_public_key(self.value)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise KeyUnusable(f"{self.key_id} does not hold a P-256 public key")
        return key

    def hybrid(self) -> HybridPublicKey:
        """Return both public keys. Raises `WrongKeyUse` for another algorithm."""
        if self.algorithm is not Algorithm.hybrid:
            raise WrongKeyUse(f"{self.key_id} is not a hybrid key")
        return HybridPublicKey(self.value[:ED25519_KEY], self.value[ED25519_KEY:])

    def jwk(self) -> dict[str, str]:
        """Return the key as a JSON Web Key (RFC 7517; RFC 8037 for Ed25519)."""
        common = {"kid": self.kid, "use": "sig"}
        if self.algorithm is Algorithm.ed25519:
            return {"alg": "EdDSA", "crv": "Ed25519", "kty": "OKP", "x": _b64(self.value), **common}
        numbers = self.ec().public_numbers()
        x, y = (n.to_bytes(P256_COORDINATE, "big") for n in (numbers.x, numbers.y))
        return {"alg": "ES256", "crv": "P-256", "kty": "EC", "x": _b64(x), "y": _b64(y), **common}


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def es256_raw(der: bytes) -> bytes:
    """Turn a DER ECDSA signature into r ‖ s."""
    r, s = decode_dss_signature(der)
    return r.to_bytes(P256_COORDINATE, "big") + s.to_bytes(P256_COORDINATE, "big")


def key_id(text: str) -> KeyId:
    """Return `text` as a key id. Raises `BadKeyId`: no path, no dot, no upper case."""
    if not KEY_ID.fullmatch(text):
        raise BadKeyId(f"{text[:80]!r} is not a key id")
    return KeyId(text)


class KeyProvider(Protocol):
    """Uses keys on the caller's behalf. Private key bytes never leave it.

    Every method may raise `KeyNotFound`, `KeyCustodyDown` (or a subclass) and `KeyUnusable`.
    """

    @property
    def name(self) -> str:
        """The scheme of its URI."""
        ...

    def create(self, key: KeyId, *, algorithm: Algorithm, purpose: Purpose) -> KeyInfo:
        """Make a key with an active version 1. Raises `KeyExists`, `BadKeyId`."""
        ...

    def describe(self, key: KeyId) -> KeyInfo:
        """Return what is known of the active version (the newest one when none is active)."""
        ...

    def list_keys(self) -> tuple[KeyInfo, ...]:
        """Return every key as `describe` does, ordered by id."""
        ...

    def versions(self, key: KeyId) -> tuple[KeyInfo, ...]:
        """Return every version, oldest first."""
        ...

    def public_key(self, key: KeyId, version: int | None = None) -> PublicKey:
        """Return the public key of any version that is not destroyed, by default the active one."""
        ...

    def sign(self, key: KeyId, message: bytes) -> Signature:
        """Sign with the active version. Raises `WrongKeyUse`, `KeyDisabled`."""
        ...

    def verify(self, key: KeyId, message: bytes, signature: Signature) -> bytes:
        """Return `message` if this key's version made `signature`. Raises `SignatureInvalid`."""
        ...

    def wrap(self, key: KeyId, data_key: bytes, context: WrapContext) -> bytes:
        """Encrypt a data key of at most 64 bytes, bound to `context`, with the active version."""
        ...

    def unwrap(self, key: KeyId, wrapped: bytes, context: WrapContext) -> bytes:
        """Open what `wrap` made. Raises `WrongContext`, `KeyRetired`, `KeyDestroyed`, `KeyDisabled`."""
        ...

    def data_key(self, key: KeyId, context: WrapContext) -> DataKey:
        """Make a data key of 32 bytes and wrap it."""
        ...

    def rewrap(self, key: KeyId, wrapped: bytes, context: WrapContext) -> bytes:
        """Wrap anew under the active version what an older one wrapped."""
        ...

    def stage(self, key: KeyId) -> KeyInfo:
        """Make a pending version, so that its public key is published before it signs."""
        ...

    def rotate(self, key: KeyId) -> KeyInfo:
        """Activate the pending version, or a fresh one; what was active becomes decrypt-only."""
        ...

    def disable(self, key: KeyId) -> KeyInfo:
        """Refuse every use of the key until `enable`; public keys still verify."""
        ...

    def enable(self, key: KeyId) -> KeyInfo:
        """Undo `disable`."""
        ...

    def retire(self, key: KeyId, version: int) -> KeyInfo:
        """End a version: it opens nothing any more, its public key still verifies.

        The active version can be retired only while the key is disabled. Raises `BadTransition`.
        """
        ...

    def destroy(self, key: KeyId, version: int, *, delay: timedelta) -> KeyInfo:
        """Have a retired version destroyed after `delay`. Raises `BadTransition`."""
        ...

    def cancel_destruction(self, key: KeyId, version: int) -> KeyInfo:
        """Keep a version whose time has not come. Raises `BadTransition`."""
        ...

    def purge(self) -> tuple[KeyInfo, ...]:
        """Erase the material of every version whose time of destruction has come."""
        ...
