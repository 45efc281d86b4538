"""Sealed columns: each value under a data key of its own, which the custody wrapped.

    sealed = 1 (1 byte) ‖ length (2) ‖ wrapped data key ‖ nonce (12) ‖ ciphertext and tag

The wrapped key is bound to the ring's key, version, table, column and tenant; the ciphertext
(AES-256-GCM) to tenant, table, column and row. So a value that is moved to another row, column or
tenant does not open. A rotation wraps the data keys anew and leaves the ciphertexts alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretBytes

from tensorguard.crypto import canonical
from tensorguard.errors import VerificationError
from tensorguard.keys.cache import DataKeyCache
from tensorguard.keys.provider import (
    MAX_WRAPPED,
    VERSION_BYTES,
    Algorithm,
    KeyId,
    KeyProvider,
    Purpose,
    WrapContext,
)
from tensorguard.keys.signers import ensure
from tensorguard.platform.keys.rings import DATA_AT_REST

FORMAT: Final = b"\x01"
LENGTH_BYTES: Final = 2
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16


class SealBroken(VerificationError):
    """The value is not what was sealed for this place."""

    code = "seal_broken"
    remedy = "Store the value again; find out who changed or moved the row."


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed value lies; it opens nowhere else."""

    tenant_id: str
    table: str
    column: str
    row: str

    def context(self) -> WrapContext:
        """Return what its data key is bound to."""
        return WrapContext(purpose=f"{self.table}.{self.column}", tenant=self.tenant_id)

    def associated_data(self) -> bytes:
        """Return what its ciphertext is bound to."""
        return canonical.encode(
            {
                "column": self.column,
                "row": self.row,
                "table": self.table,
                "tenant": self.tenant_id,
            }
        )


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the database stores, and which version of the ring wrapped its data key."""

    value: bytes
    key_version: int


class Envelope:
    """Seals and opens values with data keys of one key of the custody."""

    def __init__(
        self, provider: KeyProvider, *, cache: DataKeyCache | None = None, key: KeyId = DATA_AT_REST
    ) -> None:
        self._provider, self._key = provider, key
        self._cache = DataKeyCache(provider) if cache is None else cache

    def seal(self, plaintext: SecretBytes, place: Place) -> Sealed:
        """Seal a value for its place, under a fresh data key."""
        ensure(self._provider, self._key, Algorithm.aes256_gcm, Purpose.data_at_rest)
        data_key = self._provider.data_key(self._key, place.context())
        nonce = os.urandom(NONCE_BYTES)
        ciphertext = AESGCM(data_key.plaintext).encrypt(
            nonce, plaintext.get_secret_value(), place.associated_data()
        )
        return _join(data_key.wrapped, nonce + ciphertext)

    def open(self, sealed: bytes, place: Place) -> SecretBytes:
        """Open what `seal` made for this place. Raises `SealBroken` or what the custody raises."""
        wrapped, rest = _split(sealed)
        data_key = self._cache.unwrap(self._key, wrapped, place.context())
        try:
            plaintext = AESGCM(data_key).decrypt(
                rest[:NONCE_BYTES], rest[NONCE_BYTES:], place.associated_data()
            )
        except InvalidTag as error:
            raise SealBroken("the stored value does not open here") from error
        return SecretBytes(plaintext)

    def rewrap(self, sealed: bytes, place: Place) -> Sealed:
        """Wrap the data key anew under the active version."""
        wrapped, rest = _split(sealed)
        return _join(self._provider.rewrap(self._key, wrapped, place.context()), rest)

    def forget(self) -> None:
        """Drop the data keys in memory: the ring was disabled or a version retired."""
        self._cache.forget(self._key)


def _join(wrapped: bytes, rest: bytes) -> Sealed:
    length = len(wrapped).to_bytes(LENGTH_BYTES, "big")
    version = int.from_bytes(wrapped[:VERSION_BYTES], "big")
    return Sealed(FORMAT + length + wrapped + rest, version)


def _split(sealed: bytes) -> tuple[bytes, bytes]:
    start = len(FORMAT) + LENGTH_BYTES
    length = int.from_bytes(sealed[len(FORMAT) : start], "big")
    rest = sealed[start + length :]
    if (
        not sealed.startswith(FORMAT)
        or not VERSION_BYTES < length <= MAX_WRAPPED
        or len(rest) < NONCE_BYTES + TAG_BYTES
    ):
        raise SealBroken("the stored value is not a sealed one")
    return sealed[start : start + length], rest
