"""Keys in the transit engine of Vault or OpenBao, their records in a KV version 2 engine.

Transit key `PREFIX.KEY` has our version numbers as its own. Retiring raises `min_decryption_version`,
destroying trims: Vault enforces both, oldest first. A record is written with check-and-set, so that of
two concurrent changes one is refused. Transit knows no ML-DSA: the second half of a hybrid key is a seed
sealed under a transit key of its own, opened here for one signature and dropped (ADR 7).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from tensorguard.crypto import canonical
from tensorguard.crypto.hybrid import ED25519_KEY, ML_DSA_65_SEED, unbase64
from tensorguard.errors import MalformedInput
from tensorguard.keys.custody import Custody, Made
from tensorguard.keys.provider import (
    KEY_ID,
    VERSION_BYTES,
    Algorithm,
    DataKey,
    KeyChanged,
    KeyCustodyDown,
    KeyExists,
    KeyId,
    KeyNotFound,
    KeyRetired,
    KeyState,
    KeyUnusable,
    WrapContext,
    WrongContext,
)
from tensorguard.keys.record import DEAD, Record, Version
from tensorguard.keys.vault_client import VaultClient, VaultRefused, VaultUri, parse

REFRESH: Final = 1.0  # seconds for which a record is used without asking Vault again
TOKEN: Final = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/=_-]+)")
SEAL: Final = "aes256-gcm96"
TYPES: Final[Mapping[Algorithm, str]] = MappingProxyType(
    {
        Algorithm.ed25519: "ed25519",
        Algorithm.es256: "ecdsa-p256",
        Algorithm.hybrid: "ed25519",
        Algorithm.aes256_gcm: SEAL,
    }
)


@dataclass(frozen=True, slots=True)
class _Known:
    record: Record
    sealed: Mapping[str, str]  # version → the ML-DSA seed, as transit sealed it
    written: int  # the version of the KV entry, for check-and-set
    at: float


class VaultKeyProvider(Custody[str]):
    """Keys in one transit mount."""

    name = "vault"

    def __init__(
        self,
        client: VaultClient,
        uri: VaultUri,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(now=now)
        self._vault, self._monotonic = client, monotonic
        self._transit, self._kv, self._prefix = uri.transit, uri.kv, uri.prefix
        self._lock = threading.RLock()
        self._known: dict[KeyId, _Known] = {}

    def data_key(self, key: KeyId, context: WrapContext) -> DataKey:
        """Have Vault make a data key of 32 bytes."""

        def make(_: Record, version: Version) -> dict[str, Any]:
            asked = {
                "associated_data": _b64(context.associated_data(key, version.number)),
                "bits": 256,
                "key_version": version.number,
            }
            try:
                return self._vault.write(
                    f"{self._transit}/datakey/plaintext/{self._name(key)}", asked
                )
            except VaultRefused as error:
                raise _refused(error, key) from error

        answer, version, _ = self._with_active(key, make, signing=False)
        number, sealed = _token(answer.get("ciphertext"))
        if number != version.number:  # an older Vault knows no key_version here
            return super().data_key(key, context)
        head = number.to_bytes(VERSION_BYTES, "big")
        return DataKey(unbase64(answer.get("plaintext"), size=32), head + sealed)

    # --- what `Custody` asks: records -----------------------------------------------------

    def _name(self, key: KeyId) -> str:
        return f"{self._prefix}.{key}"

    def _seal_name(self, key: KeyId, number: int) -> str:
        return f"{self._prefix}.{key}.seal.{number}"

    def _names(self) -> Iterable[KeyId]:
        found = self._vault.list(f"{self._kv}/metadata/{self._prefix}")
        return {KeyId(name) for name in found if KEY_ID.fullmatch(name)}

    def _read(self, key: KeyId, *, fresh: bool = False) -> Record:
        known, moment = self._known.get(key), self._monotonic()
        if known is not None and not fresh and moment - known.at <= REFRESH:
            return known.record
        answer = self._vault.read(f"{self._kv}/data/{self._prefix}/{key}")
        if answer is None or answer.get("data") is None:
            self._known.pop(key, None)
            raise KeyNotFound(f"there is no key {key}")
        try:
            record = Record.decode(answer["data"]["record"].encode(), key)
            sealed = {str(n): str(text) for n, text in answer["data"]["sealed"].items()}
            written = int(answer["metadata"]["version"])
        except (MalformedInput, AttributeError, KeyError, TypeError, ValueError) as error:
            raise KeyUnusable(f"the record of the key {key} is damaged") from error
        self._known[key] = _Known(record, sealed, written, moment)
        return record

    @contextmanager
    def _changing(self, key: KeyId) -> Iterator[Record | None]:
        with self._lock:  # one process does not race itself; check-and-set tells of another
            try:
                record = self._read(key, fresh=True)
            except KeyNotFound:
                yield None
            else:
                yield record

    def _save(self, before: Record | None, after: Record, made: Made[str] | None) -> None:
        known = self._known.get(after.key_id)
        written = 0 if before is None or known is None else known.written
        sealed = {} if before is None or known is None else dict(known.sealed)
        if made is not None and made.material:
            sealed[str(after.versions[-1].number)] = made.material
        gone = {str(v.number) for v in after.versions if v.state is KeyState.destroyed}
        sealed = {n: text for n, text in sealed.items() if n not in gone}
        data = {"record": after.encode().decode(), "sealed": sealed}
        path = f"{self._kv}/data/{self._prefix}/{after.key_id}"
        try:
            answer = self._vault.write(path, {"data": data, "options": {"cas": written}})
        except VaultRefused as error:
            if "check-and-set" not in error.reason:
                raise
            if before is None:
                raise KeyExists(f"the key {after.key_id} exists") from error
            raise KeyChanged(f"the key {after.key_id} was changed by someone else") from error
        version, moment = int(answer["version"]), self._monotonic()
        self._known[after.key_id] = _Known(after, sealed, version, moment)
        self._enforce(before, after)

    def _enforce(self, before: Record | None, after: Record) -> None:
        """Have Vault itself refuse what the record refuses, as far as its floors can."""
        if before is not None and _floors(before) != _floors(after):
            used, kept = _floors(after)
            path = f"{self._transit}/keys/{self._name(after.key_id)}"
            floors = {"min_decryption_version": used, "min_encryption_version": used}
            self._vault.write(f"{path}/config", floors)
            if kept > _floors(before)[1]:
                self._vault.write(f"{path}/trim", {"min_available_version": kept})
        if after.algorithm is not Algorithm.hybrid or before is None:
            return
        for version in before.versions:
            now = after.version(version.number).state
            if now is KeyState.destroyed and version.state is not KeyState.destroyed:
                path = f"{self._transit}/keys/{self._seal_name(after.key_id, version.number)}"
                self._vault.write(f"{path}/config", {"deletion_allowed": True})
                self._vault.delete(path)

    # --- what `Custody` asks: material ----------------------------------------------------

    def _make(self, key: KeyId, algorithm: Algorithm, number: int) -> Made[str]:
        path = f"{self._transit}/keys/{self._name(key)}"
        first = number == 1
        if first:
            self._vault.write(path, {"type": TYPES[algorithm]})
        found = self._vault.read(path) or {}
        if found.get("latest_version") == number - 1:
            self._vault.write(f"{path}/rotate", {})
            found = self._vault.read(path) or {}
        latest = int(found.get("latest_version") or 0)
        if latest < number or (first and latest > 1) or found.get("type") != TYPES[algorithm]:
            raise KeyChanged(f"the transit key of {key} is not the one that its record describes")
        number = latest  # another process may have rotated it, and failed to write the record
        if found.get("exportable") or found.get("allow_plaintext_backup"):
            raise KeyUnusable(f"the transit key of {key} can be read out of Vault")
        if not algorithm.signs:
            return Made(b"", "", number)
        public = _public(algorithm, found["keys"][str(number)]["public_key"])
        if algorithm is not Algorithm.hybrid:
            return Made(public, "", number)
        seed = os.urandom(ML_DSA_65_SEED)
        name = self._seal_name(key, number)
        self._vault.write(f"{self._transit}/keys/{name}", {"type": SEAL})
        sealed = self._vault.write(
            f"{self._transit}/encrypt/{name}",
            {"associated_data": _b64(_seed_context(key, number)), "plaintext": _b64(seed)},
        )["ciphertext"]
        ml_dsa = MLDSA65PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()
        return Made(public + ml_dsa, str(sealed), number)

    def _sign(self, record: Record, version: Version, message: bytes) -> bytes:
        path = f"{self._transit}/sign/{self._name(record.key_id)}"
        asked: dict[str, Any] = {"input": _b64(message), "key_version": version.number}
        if record.algorithm is Algorithm.es256:
            path += "/sha2-256"
            asked["input"] = _b64(hashlib.sha256(message).digest())
            asked.update({"marshaling_algorithm": "jws", "prehashed": True})
        try:
            answer = self._vault.write(path, asked)
        except VaultRefused as error:
            raise _refused(error, record.key_id) from error
        number, value = _token(answer.get("signature"))
        if number != version.number:
            raise KeyCustodyDown("Vault signed with another version")
        if record.algorithm is Algorithm.hybrid:
            seed = self._seed(record.key_id, version.number)
            value += MLDSA65PrivateKey.from_seed_bytes(seed).sign(message)
        return value

    def _seed(self, key: KeyId, number: int) -> bytes:
        known = self._known.get(key)
        if known is None or str(number) not in known.sealed:
            raise KeyUnusable(f"the ML-DSA half of {key} is missing")
        asked = {
            "associated_data": _b64(_seed_context(key, number)),
            "ciphertext": known.sealed[str(number)],
        }
        try:
            answer = self._vault.write(
                f"{self._transit}/decrypt/{self._seal_name(key, number)}", asked
            )
        except VaultRefused as error:
            raise KeyUnusable(f"the ML-DSA half of {key} does not open") from error
        return unbase64(answer.get("plaintext"), size=ML_DSA_65_SEED)

    def _seal(
        self, record: Record, version: Version, data_key: bytes, context: WrapContext
    ) -> bytes:
        asked = {
            "associated_data": _b64(context.associated_data(record.key_id, version.number)),
            "key_version": version.number,
            "plaintext": _b64(data_key),
        }
        try:
            answer = self._vault.write(
                f"{self._transit}/encrypt/{self._name(record.key_id)}", asked
            )
        except VaultRefused as error:
            raise _refused(error, record.key_id) from error
        number, sealed = _token(answer.get("ciphertext"))
        if number != version.number:
            raise KeyCustodyDown("Vault wrapped with another version")
        return sealed

    def _open(self, record: Record, version: Version, sealed: bytes, context: WrapContext) -> bytes:
        asked = {
            "associated_data": _b64(context.associated_data(record.key_id, version.number)),
            "ciphertext": f"vault:v{version.number}:{_b64(sealed)}",
        }
        try:
            answer = self._vault.write(
                f"{self._transit}/decrypt/{self._name(record.key_id)}", asked
            )
        except VaultRefused as error:
            raise _refused(error, record.key_id) from error
        return unbase64(answer.get("plaintext"))


def _refused(error: VaultRefused, key: KeyId) -> Exception:
    """Read Vault's own words: they are the only difference between its refusals."""
    if "disallowed by policy" in error.reason or "less than the minimum" in error.reason:
        return KeyRetired(f"Vault has retired this version of {key}")
    if "not found" in error.reason:
        return KeyUnusable(f"Vault holds no key for {key}")
    if "ciphertext" in error.reason or "authentication failed" in error.reason:
        return WrongContext("the wrapped key does not open under this context")
    return error


def _floors(record: Record) -> tuple[int, int]:
    """Return the lowest version that may be used and the lowest that exists.

    A version that was rotated away stays above the first floor until it is retired: a process that
    has not seen the rotation yet may sign with it for a moment.
    """
    newest = record.versions[-1].number
    alive = [v.number for v in record.versions if v.state not in DEAD]
    kept = [v.number for v in record.versions if v.state is not KeyState.destroyed]
    return min(alive, default=newest), min(kept, default=newest)


def _token(text: object) -> tuple[int, bytes]:
    match = TOKEN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise KeyCustodyDown("Vault answered in a form that is not known")
    padded = match[2].replace("-", "+").replace("_", "/")
    return int(match[1]), unbase64(padded + "=" * (-len(padded) % 4))


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _seed_context(key: KeyId, number: int) -> bytes:
    return canonical.encode({"key_id": key, "member": "ML-DSA-65", "version": number})


def _public(algorithm: Algorithm, text: str) -> bytes:
    if algorithm is not Algorithm.es256:
        return unbase64(text, size=ED25519_KEY)
    try:
        key = serialization.load_pem_public_key(text.encode())
    except ValueError as error:
        raise KeyUnusable("Vault returned a public key of another form") from error
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def open_vault(
    rest: str,
    *,
    now: Callable[[], datetime],
    monotonic: Callable[[], float] = time.monotonic,
    timeout: float = 5.0,
) -> VaultKeyProvider:
    """Open the transit mount that the URL after `vault:` names."""
    uri = parse(rest)
    client = VaultClient(uri, monotonic=monotonic, timeout=timeout)
    return VaultKeyProvider(client, uri, now=now, monotonic=monotonic)
