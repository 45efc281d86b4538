"""Keys on a PKCS#11 token: they are made there, used there, and cannot be read.

Every version is an object of its own, labelled PREFIX/KEY/VERSION: an AES-256 key (wraps data keys
with GCM), a P-256 or an Ed25519 key pair; all sensitive and not extractable. The record of a key is a
private data object PREFIX/KEY. PKCS#11 2.40 knows no ML-DSA: the second half of a hybrid key is a seed
sealed under an AES key of the token, opened here for one signature and dropped (ADR 7).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pkcs11
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import exceptions as raised
from pkcs11.util.ec import encode_named_curve_parameters

from tensorguard.crypto import canonical
from tensorguard.crypto.hybrid import ED25519_KEY, ML_DSA_65_SEED
from tensorguard.errors import MalformedInput
from tensorguard.keys.custody import Custody, Made
from tensorguard.keys.pkcs11_token import Token, open_token
from tensorguard.keys.pkcs11_uri import parse
from tensorguard.keys.provider import (
    KEY_ID,
    Algorithm,
    KeyId,
    KeyNotFound,
    KeyProviderUnusable,
    KeyState,
    KeyUnusable,
    WrapContext,
    WrongContext,
)
from tensorguard.keys.record import Record, Version

APPLICATION: Final = "tensorguard"
REFRESH: Final = 1.0  # seconds for which a record is used without asking the token again
NONCE_BYTES, TAG_BITS = 12, 128
OCTET_STRING: Final = b"\x04\x20"  # DER: 32 bytes follow
MAX_KEYS = 10_000  # data objects that are looked at
_PRIVATE: Final[dict[Attribute, Any]] = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.PRIVATE: True,
}
_CURVES: Final = {
    Algorithm.ed25519: (KeyType.EC_EDWARDS, "1.3.101.112", Mechanism.EC_EDWARDS_KEY_PAIR_GEN),
    Algorithm.hybrid: (KeyType.EC_EDWARDS, "1.3.101.112", Mechanism.EC_EDWARDS_KEY_PAIR_GEN),
    Algorithm.es256: (KeyType.EC, "secp256r1", Mechanism.EC_KEY_PAIR_GEN),
}


class Pkcs11KeyProvider(Custody[None]):
    """Keys on one token. `locks` is a folder in which processes of this host queue for changes."""

    name = "pkcs11"

    def __init__(
        self,
        token: Token,
        prefix: str,
        *,
        now: Callable[[], datetime],
        locks: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(now=now)
        self._token, self._prefix, self._locks = token, prefix, locks
        self._monotonic = monotonic
        self._records: dict[KeyId, tuple[Record, float]] = {}

    # --- what `Custody` asks: records -----------------------------------------------------

    def _read(self, key: KeyId, *, fresh: bool = False) -> Record:
        known, moment = self._records.get(key), self._monotonic()
        if known is not None and not fresh and moment - known[1] <= REFRESH:
            return known[0]
        found = self._token.use(lambda session: self._stored(session, key))
        if not found:
            self._records.pop(key, None)
            raise KeyNotFound(f"there is no key {key}")
        record = found[0][0]
        self._records[key] = (record, moment)
        return record

    def _stored(self, session: pkcs11.Session, key: KeyId) -> list[tuple[Record, pkcs11.Object]]:
        """Return the records of a key, the newest first; a crash can leave an older one."""
        label = f"{self._prefix}/{key}"
        found = []
        for item in list(session.get_objects(_data(label))):
            try:
                found.append((Record.decode(bytes(item[Attribute.VALUE]), key), item))
            except MalformedInput as error:
                raise KeyUnusable(f"the record of the key {key} is damaged") from error
        if not found:
            self._token.check()
        return sorted(found, key=lambda pair: pair[0].generation, reverse=True)

    @contextmanager
    def _changing(self, key: KeyId) -> Iterator[Record | None]:
        with ExitStack() as stack:
            stack.enter_context(self._token.lock)
            if self._locks is not None:
                stack.enter_context(_queued(self._locks / f"pkcs11-{self._prefix}"))
            try:
                record = self._read(key, fresh=True)
            except KeyNotFound:
                yield None
            else:
                yield record

    def _names(self) -> Iterable[KeyId]:
        def labels(session: pkcs11.Session) -> set[str]:
            wanted = {Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: APPLICATION}
            found = list(session.get_objects(wanted))
            if not found:
                self._token.check()
            if len(found) > MAX_KEYS:
                raise KeyProviderUnusable(f"the token holds more than {MAX_KEYS} records")
            return {str(item[Attribute.LABEL]) for item in found}

        parts = (label.split("/") for label in self._token.use(labels))
        ours = (p[1] for p in parts if len(p) == len(("prefix", "key")) and p[0] == self._prefix)
        return {KeyId(name) for name in ours if KEY_ID.fullmatch(name)}

    def _save(
        self,
        before: Record | None,
        after: Record,
        made: Made[None] | None,  # noqa: ARG002 - the token has it already
    ) -> None:
        def save(session: pkcs11.Session) -> None:
            for version in before.versions if before else ():
                if after.version(version.number).state is KeyState.destroyed:
                    self._erase(session, self._label(after.key_id, version.number))
            older = [item for _, item in self._stored(session, after.key_id)]
            label = f"{self._prefix}/{after.key_id}"
            session.create_object({**_data(label), **_STORED, Attribute.VALUE: after.encode()})
            for item in older:
                item.destroy()

        self._token.use(save)
        self._records[after.key_id] = (after, self._monotonic())

    # --- what `Custody` asks: material ----------------------------------------------------

    def _label(self, key: KeyId, number: int) -> str:
        return f"{self._prefix}/{key}/{number}"

    def _make(self, key: KeyId, algorithm: Algorithm, number: int) -> Made[None]:
        label = self._label(key, number)

        def make(session: pkcs11.Session) -> bytes:
            self._erase(session, label)  # what a killed attempt left
            public = b""
            if algorithm in {Algorithm.aes256_gcm, Algorithm.hybrid}:
                aes = session.generate_key(
                    KeyType.AES,
                    256,
                    label=label,
                    id=label.encode(),
                    store=True,
                    capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
                    template=_PRIVATE,
                )
                _check_sealed(aes)
            if algorithm.signs:
                public = _key_pair(session, algorithm, label)
            if algorithm is Algorithm.hybrid:
                public += self._make_ml_dsa(session, aes, key, number)
            return public

        return Made(self._token.use(make), None)

    def _make_ml_dsa(self, session: pkcs11.Session, aes: Any, key: KeyId, number: int) -> bytes:
        seed = os.urandom(ML_DSA_65_SEED)
        sealed = _encrypt(aes, seed, _seed_context(key, number))
        label = f"{self._label(key, number)}/ml-dsa-65"
        session.create_object({**_data(label), **_STORED, Attribute.VALUE: sealed})
        return MLDSA65PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()

    def _erase(self, session: pkcs11.Session, label: str) -> None:
        self._token.handles.clear()
        for wanted in ({Attribute.LABEL: label}, {Attribute.LABEL: f"{label}/ml-dsa-65"}):
            for item in list(session.get_objects(wanted)):
                item.destroy()

    def _find(self, session: pkcs11.Session, kind: ObjectClass, label: str) -> Any:
        found = self._token.handles.get((kind, label))
        if found is None:
            items = list(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: label}))
            if not items:
                self._token.check()
            if len(items) != 1:
                raise KeyUnusable(f"the token holds {len(items)} objects {label}, not one")
            found = self._token.handles[kind, label] = items[0]
        return found

    def _sign(self, record: Record, version: Version, message: bytes) -> bytes:
        label = self._label(record.key_id, version.number)

        def sign(session: pkcs11.Session) -> tuple[bytes, bytes]:
            private = self._find(session, ObjectClass.PRIVATE_KEY, label)
            if record.algorithm is Algorithm.es256:
                digest = hashlib.sha256(message).digest()
                return private.sign(digest, mechanism=Mechanism.ECDSA), b""
            classical = private.sign(message, mechanism=Mechanism.EDDSA)
            if record.algorithm is Algorithm.ed25519:
                return classical, b""
            aes = self._find(session, ObjectClass.SECRET_KEY, label)
            stored = self._find(session, ObjectClass.DATA, f"{label}/ml-dsa-65")
            context = _seed_context(record.key_id, version.number)
            try:
                return classical, _decrypt(aes, bytes(stored[Attribute.VALUE]), context)
            except WrongContext as error:
                raise KeyUnusable(f"the ML-DSA half of {record.key_id} does not open") from error

        value, seed = self._token.use(sign)
        if record.algorithm is Algorithm.hybrid:
            value += MLDSA65PrivateKey.from_seed_bytes(seed).sign(message)
        return value

    def _seal(
        self, record: Record, version: Version, data_key: bytes, context: WrapContext
    ) -> bytes:
        label = self._label(record.key_id, version.number)
        bound = context.associated_data(record.key_id, version.number)
        return self._token.use(
            lambda session: _encrypt(
                self._find(session, ObjectClass.SECRET_KEY, label), data_key, bound
            )
        )

    def _open(self, record: Record, version: Version, sealed: bytes, context: WrapContext) -> bytes:
        label = self._label(record.key_id, version.number)
        bound = context.associated_data(record.key_id, version.number)
        return self._token.use(
            lambda session: _decrypt(
                self._find(session, ObjectClass.SECRET_KEY, label), sealed, bound
            )
        )


_STORED: Final[dict[Attribute, Any]] = {Attribute.TOKEN: True, Attribute.PRIVATE: True}


def _data(label: str) -> dict[Attribute, Any]:
    return {
        Attribute.CLASS: ObjectClass.DATA,
        Attribute.APPLICATION: APPLICATION,
        Attribute.LABEL: label,
    }


def _seed_context(key: KeyId, number: int) -> bytes:
    return canonical.encode({"key_id": key, "member": "ML-DSA-65", "version": number})


def _key_pair(session: pkcs11.Session, algorithm: Algorithm, label: str) -> bytes:
    kind, curve, mechanism = _CURVES[algorithm]
    parameters = session.create_domain_parameters(
        kind, {Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}, local=True
    )
    public, private = parameters.generate_keypair(
        mechanism=mechanism,
        label=label,
        id=label.encode(),
        store=True,
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        private_template=_PRIVATE,
    )
    _check_sealed(private)
    point = bytes(public[Attribute.EC_POINT])
    if algorithm is Algorithm.es256:
        raw = point[2:] if point[:2] == b"\x04\x41" else point  # DER: 65 bytes follow
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw).public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    return point.removeprefix(OCTET_STRING) if len(point) > ED25519_KEY else point


def _check_sealed(made: Any) -> None:
    if made[Attribute.EXTRACTABLE] or not made[Attribute.SENSITIVE]:
        raise KeyProviderUnusable("the token made a key that can be read out of it")


def _parameters(nonce: bytes, bound: bytes) -> Any:
    return pkcs11.GCMParams(nonce, bound, TAG_BITS)


def _encrypt(aes: Any, plaintext: bytes, bound: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    sealed = aes.encrypt(
        plaintext, mechanism=Mechanism.AES_GCM, mechanism_param=_parameters(nonce, bound)
    )
    return nonce + bytes(sealed)


def _decrypt(aes: Any, sealed: bytes, bound: bytes) -> bytes:
    """Open what `_encrypt` made. A token says `GeneralError` to tampering and to much else."""
    nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    if len(body) <= TAG_BITS // 8:
        raise WrongContext("the wrapped key is too short")
    try:
        return bytes(
            aes.decrypt(
                body, mechanism=Mechanism.AES_GCM, mechanism_param=_parameters(nonce, bound)
            )
        )
    except (raised.EncryptedDataInvalid, raised.EncryptedDataLenRange) as error:
        raise WrongContext("the wrapped key does not open under this context") from error
    except (raised.GeneralError, raised.FunctionFailed, raised.DataInvalid) as error:
        _encrypt(aes, b"\0" * 16, b"")  # raises when it is the token that is in trouble
        raise WrongContext("the wrapped key does not open under this context") from error


@contextmanager
def _queued(path: Path) -> Iterator[None]:
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_pkcs11(
    rest: str, *, now: Callable[[], datetime], locks: Path | None = None
) -> Pkcs11KeyProvider:
    """Open the token that the URI after `pkcs11:` names."""
    uri = parse(rest)
    return Pkcs11KeyProvider(open_token(uri), uri.prefix, now=now, locks=locks)
