"""The file of a client's CKKS secret key: sealed under a key of the client's own custody, or in plain.

A sealed file opens with the same custody, under its own name, for its own parameters, and not at all
once a byte of it was changed. Whoever puts an older file of the same name back is not seen; such keys are
still the client's own. docs/formats/client-keystore.md has the format.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tensorguard.crypto import canonical
from tensorguard.crypto.files import read_bounded, write_atomic
from tensorguard.crypto.hybrid import unbase64
from tensorguard.errors import ConfigurationError, MalformedInput, NotFound, VerificationError
from tensorguard.keys.provider import (
    Algorithm,
    KeyId,
    KeyNotFound,
    KeyProvider,
    Purpose,
    WrapContext,
    WrongContext,
    key_id,
)
from tensorguard.keys.signers import ensure
from tensorguard.moai.client import ClientKeys, check_view
from tensorguard.wire.frames import ParametersMismatch
from tensorguard.wire.models import ModelView

FORMAT: Final = "tensorguard-client-keystore-1"
PURPOSE: Final = "client-secret-keys"
KEY: Final = key_id("client-keystore")
CONTEXT: Final = WrapContext(purpose=PURPOSE, tenant="client")
NONCE_BYTES: Final = 12
LIMIT: Final = 16 << 20  # bytes; a secret key of the largest parameters is 4 MiB before base64
MEMBERS: Final = frozenset({"format", "key", "name", "parameters", "purpose", "sealed", "wrapped"})


class KeystoreUnsealed(ConfigurationError):
    code = "keystore_unsealed"
    remedy = (
        "Give the client a key provider (TG_KEY_PROVIDER, key_provider=); the file is then sealed. "
        "Or keep the keys in memory. A plain file needs unsafe_plain_keys=True."
    )


class KeystorePlain(ConfigurationError):
    code = "keystore_plain"
    remedy = "Remove the file, or name another one: new keys are made and uploaded once."


class KeystoreSealed(ConfigurationError):
    code = "keystore_sealed"
    remedy = "Give the client the key provider that sealed the file."


class KeystoreBroken(VerificationError):
    """The file is not what this custody sealed for this place."""

    code = "keystore_broken"
    remedy = (
        "Check the key provider and find out who changed or moved the file. Its keys cannot be "
        "restored: remove it, and new ones are made."
    )


class Keystore(Protocol):
    """One file of secret keys."""

    def load(self, view: ModelView) -> ClientKeys | None:
        """Return the keys for a view, or None where there is no file yet."""
        ...

    def save(self, keys: ClientKeys) -> None:
        """Write the keys, whole or not at all, mode 0600."""
        ...


class PlainKeystore:
    """A file that whoever can read it can use. Development only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, view: ModelView) -> ClientKeys | None:
        """Read the frame. Raises `KeystoreSealed` for one that is sealed."""
        data = _read(self._path)
        if data is None:
            return None
        if data.startswith(b"{"):
            raise KeystoreSealed(f"{self._path.name} is sealed")
        return ClientKeys.from_frame(data, view)

    def save(self, keys: ClientKeys) -> None:
        """Write the frame."""
        write_atomic(self._path, keys.to_frame())


class SealedKeystore:
    """A file under a data key of its own, which a key of the custody wraps."""

    def __init__(self, path: Path, provider: KeyProvider, *, key: KeyId = KEY) -> None:
        self._path, self._provider, self._key = path, provider, key

    def load(self, view: ModelView) -> ClientKeys | None:
        """Open the file. Raises `KeystoreBroken`, `KeystorePlain`, `ParametersMismatch`."""
        data = _read(self._path)
        if data is None:
            return None
        # (1) it has our form
        if not data.startswith(b"{"):
            raise KeystorePlain(f"{self._path.name} is not sealed")
        file = _parse(data)
        # (2) it says that it is for this place; nothing of that is believed before step 4
        parameters = check_view(view).id
        header = self._header(parameters)
        if file["parameters"] != header["parameters"]:
            raise ParametersMismatch("the keystore is for other parameters than the model")
        if any(file[name] != value for name, value in header.items()):
            raise KeystoreBroken("the keystore was sealed for another name or by another key")
        # (3) the custody opens the data key
        try:
            data_key = self._provider.unwrap(self._key, unbase64(file["wrapped"]), CONTEXT)
        except (KeyNotFound, WrongContext, MalformedInput) as error:
            raise KeystoreBroken("this key provider did not seal the keystore") from error
        # (4) the data key opens the keys, and vouches for the header
        try:
            sealed = unbase64(file["sealed"], limit=LIMIT)
            frame = AESGCM(data_key).decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], canonical.encode(header)
            )
        except (InvalidTag, ValueError, MalformedInput) as error:
            raise KeystoreBroken("the keystore does not open") from error
        return ClientKeys.from_frame(frame, view)

    def save(self, keys: ClientKeys) -> None:
        """Seal the keys under a fresh data key."""
        ensure(self._provider, self._key, Algorithm.aes256_gcm, Purpose.data_at_rest)
        data_key = self._provider.data_key(self._key, CONTEXT)
        header = self._header(keys.parameters.id)
        nonce = os.urandom(NONCE_BYTES)
        sealed = AESGCM(data_key.plaintext).encrypt(
            nonce, keys.to_frame(), canonical.encode(header)
        )
        file = {**header, "sealed": _base64(nonce + sealed), "wrapped": _base64(data_key.wrapped)}
        write_atomic(self._path, canonical.encode(file))

    def _header(self, parameters: bytes) -> dict[str, str]:
        return {
            "format": FORMAT,
            "key": self._key,
            "name": self._path.name,
            "parameters": parameters.hex(),
            "purpose": PURPOSE,
        }


def keystore(path: Path, provider: KeyProvider | None, *, unsafe_plain_keys: bool) -> Keystore:
    """Return the keystore at `path`. Raises `KeystoreUnsealed` unless one of both is given."""
    if provider is not None:
        return SealedKeystore(path, provider)
    if not unsafe_plain_keys:
        raise KeystoreUnsealed(f"{path.name} would hold a secret key in plain")
    return PlainKeystore(path)


def _read(path: Path) -> bytes | None:
    try:
        return read_bounded(path, limit=LIMIT, private=True)
    except NotFound:
        return None


def _parse(data: bytes) -> dict[str, str]:
    try:
        file: Any = canonical.decode(data, limit=LIMIT)
    except MalformedInput as error:
        raise KeystoreBroken("the keystore cannot be read") from error
    if not isinstance(file, dict) or file.keys() != MEMBERS:
        raise KeystoreBroken("the keystore has other members than it should")
    if not all(isinstance(value, str) for value in file.values()):
        raise KeystoreBroken("the keystore has a member of another type")
    return file


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
