"""Keys in AWS KMS: every version is a KMS key of its own, which KMS disables and deletes itself.

`alias/PREFIX/KEY/VERSION` names the KMS key; its tags hold the record, public keys included, because
KMS gives out no public key of a disabled key. Creating an alias that exists fails: so two processes
cannot make the same version. Wrapping keys also rotate inside KMS, yearly and on demand. A hybrid key
is an ML-DSA-65 key of KMS and an Ed25519 seed under a second, symmetric KMS key (ADR 7).
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl, urlsplit

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from tensorguard.crypto.hybrid import ED25519_KEY
from tensorguard.keys.aws_errors import code_of, translated
from tensorguard.keys.aws_tags import (
    TAG,
    all_tags,
    joined,
    read_record,
    read_version,
    state_tags,
    switched_off,
)
from tensorguard.keys.custody import Custody, Made
from tensorguard.keys.provider import (
    KEY_ID,
    PREFIX_PATTERN,
    VERSION_BYTES,
    Algorithm,
    DataKey,
    KeyChanged,
    KeyExists,
    KeyId,
    KeyNotFound,
    KeyProviderUnusable,
    KeyState,
    KeyUnusable,
    WrapContext,
    WrongContext,
    WrongKeyUse,
    es256_raw,
    key_id,
)
from tensorguard.keys.record import DEAD, Record, Version

REFRESH: Final = 15.0  # seconds for which a record is used without asking KMS again
ROTATION_DAYS: Final = 365  # of the material inside a symmetric KMS key
MAX_RAW: Final = 4096  # bytes that KMS signs; longer messages are hashed here where that is allowed
MAX_ALIASES: Final = 20_000
REGION: Final = re.compile(r"[a-z]{2}(?:-[a-z]+)+-[0-9]{1,2}")
SYMMETRIC: Final = "SYMMETRIC_DEFAULT"
SPECS: Final[Mapping[Algorithm, str]] = MappingProxyType(
    {
        Algorithm.ed25519: "ECC_NIST_EDWARDS25519",
        Algorithm.es256: "ECC_NIST_P256",
        Algorithm.hybrid: "ML_DSA_65",
        Algorithm.aes256_gcm: SYMMETRIC,
    }
)
SIGNS_WITH: Final[Mapping[Algorithm, str]] = MappingProxyType(
    {
        Algorithm.ed25519: "ED25519_SHA_512",
        Algorithm.es256: "ECDSA_SHA_256",
        Algorithm.hybrid: "ML_DSA_SHAKE_256",
    }
)


@dataclass(frozen=True, slots=True)
class KmsKeys:
    """The KMS keys of one version, and the sealed seed of a hybrid one."""

    main: str
    seal: str = ""
    sealed: bytes = b""

    @property
    def all(self) -> tuple[str, ...]:
        """Every KMS key."""
        return (self.main, self.seal) if self.seal else (self.main,)


@dataclass(frozen=True, slots=True)
class _Known:
    record: Record
    keys: Mapping[int, KmsKeys]
    at: float


class AwsKmsProvider(Custody[KmsKeys]):
    """Keys in one region of one AWS account, under `alias/PREFIX/`."""

    name = "awskms"
    delays: ClassVar[tuple[timedelta, timedelta]] = (timedelta(days=7), timedelta(days=30))

    def __init__(
        self,
        client: Any,
        prefix: str,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(now=now)
        self._kms, self._prefix, self._monotonic = client, prefix, monotonic
        self._lock = threading.RLock()
        self._known: dict[KeyId, _Known] = {}

    def data_key(self, key: KeyId, context: WrapContext) -> DataKey:
        """Have KMS make a data key of 32 bytes."""

        def make(record: Record, version: Version) -> Any:
            with translated("to make a data key"):
                return self._kms.generate_data_key(
                    KeyId=self._keys(key, version.number).main,
                    KeySpec="AES_256",
                    EncryptionContext=_context(record.key_id, version.number, context),
                )

        made, version, _ = self._with_active(key, make, signing=False)
        number = version.number.to_bytes(VERSION_BYTES, "big")
        return DataKey(bytes(made["Plaintext"]), number + bytes(made["CiphertextBlob"]))

    def refresh_material(self, key: KeyId) -> None:
        """Have KMS rotate the material inside the active wrapping key now (RotateKeyOnDemand).

        The version stays the same and opens everything it wrapped; KMS itself also does this yearly.
        """
        version = self._read(key_id(key)).to_use(signing=False)
        with translated("to rotate key material"):
            self._kms.rotate_key_on_demand(KeyId=self._keys(key, version.number).main)

    # --- what `Custody` asks: records -----------------------------------------------------

    def _alias(self, key: KeyId, number: int) -> str:
        return f"alias/{self._prefix}/{key}/{number}"

    def _aliases(self) -> dict[KeyId, dict[int, str]]:
        found: dict[KeyId, dict[int, str]] = {}
        pattern = re.compile(rf"alias/{re.escape(self._prefix)}/([^/]+)/([1-9][0-9]{{0,8}})")
        seen = 0
        with translated("to list aliases"):
            for page in self._kms.get_paginator("list_aliases").paginate():
                for alias in page["Aliases"]:
                    seen += 1
                    match = pattern.fullmatch(alias["AliasName"])
                    if match and KEY_ID.fullmatch(match[1]) and alias.get("TargetKeyId"):
                        numbers = found.setdefault(KeyId(match[1]), {})
                        numbers[int(match[2])] = alias["TargetKeyId"]
                if seen > MAX_ALIASES:
                    raise KeyProviderUnusable(f"the account has more than {MAX_ALIASES} aliases")
        return found

    def _names(self) -> Iterable[KeyId]:
        return self._aliases()

    def _read(self, key: KeyId, *, fresh: bool = False) -> Record:
        known = self._known.get(key)
        if known is not None and not fresh and self._monotonic() - known.at <= REFRESH:
            return known.record
        moment = self._monotonic()
        numbers = self._aliases().get(key)
        if not numbers:
            self._known.pop(key, None)
            raise KeyNotFound(f"there is no key {key}")
        versions, keys, tags = [], {}, {}
        for number, main in sorted(numbers.items()):
            with translated("to describe a key"):
                state = self._kms.describe_key(KeyId=main)["KeyMetadata"]
            tags = self._tags(main)
            versions.append(read_version(key, number, tags, state))
            sealed = base64.b64decode(joined(tags, "sealed"))
            keys[number] = KmsKeys(main, tags.get("seal", ""), sealed)
        record = read_record(key, tags, versions)
        if record.active is not None and not record.disabled:
            record = replace(record, disabled=switched_off(record.active, versions, state))
        self._known[key] = _Known(record, keys, moment)
        return record

    def _tags(self, main: str) -> dict[str, str]:
        with translated("to read tags"):
            pages = self._kms.get_paginator("list_resource_tags").paginate(KeyId=main)
            found = {tag["TagKey"]: tag["TagValue"] for page in pages for tag in page["Tags"]}
        return {name.removeprefix(TAG): value for name, value in found.items()}

    @contextmanager
    def _changing(self, key: KeyId) -> Iterator[Record | None]:
        with self._lock:
            try:
                record = self._read(key, fresh=True)
            except KeyNotFound:
                yield None
            else:
                yield record

    def _save(self, before: Record | None, after: Record, made: Made[KmsKeys] | None) -> None:
        known = self._known.get(after.key_id)
        keys = dict(known.keys) if known else {}
        old = {v.number: v for v in before.versions} if before else {}
        with translated("to change a key"):
            for version in after.versions:
                if version.number not in old and made is not None:
                    self._publish(after, version, made.material)
                    keys[version.number] = made.material
                elif before is not None and version.number in old:
                    was = old[version.number]
                    self._enforce(before, after, was, version, keys[version.number])
        alive = tuple(v for v in after.versions if v.state is not KeyState.destroyed)
        self._known.pop(after.key_id, None)
        if alive:
            shown = replace(after, versions=alive)
            self._known[after.key_id] = _Known(shown, keys, self._monotonic())

    def _publish(self, record: Record, version: Version, keys: KmsKeys) -> None:
        self._tag(keys.main, all_tags(record, version, keys.seal, keys.sealed))
        name = self._alias(record.key_id, version.number)
        try:
            self._kms.create_alias(AliasName=name, TargetKeyId=keys.main)
        except boto.ClientError as error:
            for main in keys.all:
                self._kms.schedule_key_deletion(KeyId=main, PendingWindowInDays=7)
            if code_of(error) != "AlreadyExistsException":
                raise
            if version.number == 1:
                raise KeyExists(f"the key {record.key_id} exists") from error
            raise KeyChanged(f"the key {record.key_id} was rotated by someone else") from error

    def _enforce(
        self, before: Record, after: Record, was: Version, version: Version, keys: KmsKeys
    ) -> None:
        if version.state is KeyState.destroyed:
            name = self._alias(after.key_id, version.number)
            self._kms.delete_alias(AliasName=name)  # KMS deletes the key itself
        elif version.destroy_at is not None:  # KMS lets nobody change a key that waits for deletion
            if was.destroy_at is None:
                days = math.ceil((version.destroy_at - self._now()) / timedelta(days=1))
                for main in keys.all:
                    self._kms.schedule_key_deletion(KeyId=main, PendingWindowInDays=days)
        else:
            if was.destroy_at is not None:
                for main in keys.all:
                    self._kms.cancel_key_deletion(KeyId=main)
            self._mark(before, after, was, version, keys)

    def _mark(
        self, before: Record, after: Record, was: Version, version: Version, keys: KmsKeys
    ) -> None:
        if (was, before.disabled) != (version, after.disabled):
            self._tag(keys.main, state_tags(after, version))
        off = after.disabled or version.state in DEAD
        if off is not (before.disabled or was.state in DEAD):
            switch = self._kms.disable_key if off else self._kms.enable_key
            for main in keys.all:
                switch(KeyId=main)

    def _tag(self, main: str, tags: Mapping[str, str]) -> None:
        listed = [{"TagKey": TAG + name, "TagValue": value} for name, value in tags.items()]
        self._kms.tag_resource(KeyId=main, Tags=listed)

    # --- what `Custody` asks: material ----------------------------------------------------

    def _keys(self, key: KeyId, number: int) -> KmsKeys:
        known = self._known.get(key)
        if known is None or number not in known.keys:
            self._read(key, fresh=True)
            known = self._known[key]
        return known.keys[number]

    def _new(self, spec: str, label: str) -> str:
        usage = "ENCRYPT_DECRYPT" if spec == SYMMETRIC else "SIGN_VERIFY"
        made = self._kms.create_key(KeySpec=spec, KeyUsage=usage, Description=label)
        main = str(made["KeyMetadata"]["KeyId"])
        if spec == SYMMETRIC:
            self._kms.enable_key_rotation(KeyId=main, RotationPeriodInDays=ROTATION_DAYS)
        return main

    def _make(self, key: KeyId, algorithm: Algorithm, number: int) -> Made[KmsKeys]:
        label = f"TensorGuard {key} version {number}"
        with translated("to create a key"):
            main = self._new(SPECS[algorithm], label)
            if not algorithm.signs:
                return Made(b"", KmsKeys(main))
            public = _public(algorithm, self._kms.get_public_key(KeyId=main)["PublicKey"])
            if algorithm is not Algorithm.hybrid:
                return Made(public, KmsKeys(main))
            seal = self._new(SYMMETRIC, f"{label}, seals its Ed25519 half")
            classical = Ed25519PrivateKey.generate()
            sealed = self._kms.encrypt(
                KeyId=seal,
                Plaintext=classical.private_bytes_raw(),
                EncryptionContext=_seed_context(key, number),
            )["CiphertextBlob"]
        public = classical.public_key().public_bytes_raw() + public
        return Made(public, KmsKeys(main, seal, bytes(sealed)))

    def _sign(self, record: Record, version: Version, message: bytes) -> bytes:
        algorithm = record.algorithm
        keys = self._keys(record.key_id, version.number)
        body, kind = message, "RAW"
        if algorithm is Algorithm.hybrid:
            body, kind = _mu(version.public[ED25519_KEY:], message), "EXTERNAL_MU"
        elif not 0 < len(message) <= MAX_RAW:
            if algorithm is not Algorithm.es256:
                raise WrongKeyUse(f"AWS KMS signs 1 to {MAX_RAW} bytes with {algorithm}")
            body, kind = hashlib.sha256(message).digest(), "DIGEST"
        with translated("to sign"):
            value = self._kms.sign(
                KeyId=keys.main,
                Message=body,
                MessageType=kind,
                SigningAlgorithm=SIGNS_WITH[algorithm],
            )["Signature"]
        if algorithm is Algorithm.es256:
            return es256_raw(value)
        if algorithm is Algorithm.ed25519:
            return bytes(value)
        return self._sign_classical(record.key_id, version.number, keys, message) + bytes(value)

    def _sign_classical(self, key: KeyId, number: int, keys: KmsKeys, message: bytes) -> bytes:
        try:
            with translated("to open the Ed25519 half"):
                seed = self._kms.decrypt(
                    KeyId=keys.seal,
                    CiphertextBlob=keys.sealed,
                    EncryptionContext=_seed_context(key, number),
                )["Plaintext"]
        except WrongContext as error:
            raise KeyUnusable(f"the Ed25519 half of {key} does not open") from error
        return Ed25519PrivateKey.from_private_bytes(seed).sign(message)

    def _seal(
        self, record: Record, version: Version, data_key: bytes, context: WrapContext
    ) -> bytes:
        with translated("to wrap"):
            sealed = self._kms.encrypt(
                KeyId=self._keys(record.key_id, version.number).main,
                Plaintext=data_key,
                EncryptionContext=_context(record.key_id, version.number, context),
            )["CiphertextBlob"]
        return bytes(sealed)

    def _open(self, record: Record, version: Version, sealed: bytes, context: WrapContext) -> bytes:
        with translated("to unwrap"):
            opened = self._kms.decrypt(
                KeyId=self._keys(record.key_id, version.number).main,
                CiphertextBlob=sealed,
                EncryptionContext=_context(record.key_id, version.number, context),
            )["Plaintext"]
        return bytes(opened)


def _context(key: KeyId, number: int, context: WrapContext) -> dict[str, str]:
    return {
        "key_id": key,
        "purpose": context.purpose,
        "tenant": context.tenant,
        "version": str(number),
    }


def _seed_context(key: KeyId, number: int) -> dict[str, str]:
    return {"key_id": key, "member": "Ed25519", "version": str(number)}


def _mu(public: bytes, message: bytes) -> bytes:
    """Return the message representative of ML-DSA with an empty context (FIPS 204, algorithm 7)."""
    tr = hashlib.shake_256(public).digest(64)
    return hashlib.shake_256(tr + b"\0\0" + message).digest(64)


def _public(algorithm: Algorithm, der: bytes) -> bytes:
    if algorithm is Algorithm.es256:
        return bytes(der)
    key = serialization.load_der_public_key(der)
    wanted = MLDSA65PublicKey if algorithm is Algorithm.hybrid else Ed25519PublicKey
    if not isinstance(key, wanted):
        raise KeyUnusable("AWS KMS returned a public key of another algorithm")
    return key.public_bytes_raw()


# --- opening ----------------------------------------------------------------------------------


class UnusableKmsUri(KeyProviderUnusable):
    code = "key_provider_uri"
    remedy = "Write awskms:REGION/PREFIX, as in awskms:eu-central-1/tensorguard."


def open_kms(rest: str, *, now: Callable[[], datetime]) -> AwsKmsProvider:
    """Open `REGION[/PREFIX][?endpoint=URL&profile=NAME]`; credentials come from boto3's own chain."""
    path, _, query = rest.partition("?")
    region, _, prefix = path.partition("/")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not REGION.fullmatch(region):
        raise UnusableKmsUri("the URI names no region")
    if not PREFIX_PATTERN.fullmatch(prefix := prefix or "tensorguard"):
        raise UnusableKmsUri("the prefix must be 1 to 32 of a-z, 0-9, _ and -")
    if not options.keys() <= {"endpoint", "profile"}:
        raise UnusableKmsUri("the URI has options other than endpoint and profile")
    opened = client(region, options.get("endpoint"), options.get("profile"))
    return AwsKmsProvider(opened, prefix, now=now)


def client(
    region: str,
    endpoint: str | None = None,
    profile: str | None = None,
    *,
    timeout: float = 5.0,
    attempts: int = 3,
    session: boto3.session.Session | None = None,
) -> Any:
    """Return a KMS client with bounded time and retries."""
    if endpoint is not None:
        parts = urlsplit(endpoint)
        if parts.scheme != "https" and parts.hostname not in {"127.0.0.1", "::1", "localhost"}:
            raise UnusableKmsUri("the endpoint must be an https URL")
    config = Config(
        connect_timeout=timeout,
        read_timeout=timeout,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        max_pool_connections=16,
        user_agent_extra="tensorguard",
    )
    with translated("to open a client"):
        opened = session or boto3.session.Session(region_name=region, profile_name=profile)
        return opened.client("kms", region_name=region, endpoint_url=endpoint, config=config)
