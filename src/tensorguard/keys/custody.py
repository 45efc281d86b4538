"""What every provider does alike: the record decides, the custody stores, enforces and computes.

A provider subclasses `Custody` and gives it storage (`_read`, `_changing`, `_save`, `_names`) and the
four uses of material (`_make`, `_sign`, `_seal`, `_open`). No decision about states is taken there.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Generic, TypeVar

from tensorguard.crypto.hybrid import SignatureInvalid
from tensorguard.keys import record as records
from tensorguard.keys.provider import (
    DATA_KEY_BYTES,
    MAX_DATA_KEY,
    MAX_WRAPPED,
    VERSION_BYTES,
    Algorithm,
    BadTransition,
    DataKey,
    KeyDisabled,
    KeyExists,
    KeyId,
    KeyInfo,
    KeyNotFound,
    KeyRetired,
    PublicKey,
    Purpose,
    Signature,
    WrapContext,
    WrongContext,
    WrongKeyUse,
    key_id,
)
from tensorguard.keys.record import Record, Version

M = TypeVar("M")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Made(Generic[M]):
    """A fresh version: its public key, and whatever the custody needs to store it.

    `number` is set by a custody that counts versions itself and may have skipped some.
    """

    public: bytes
    material: M
    number: int = 0


class Custody(ABC, Generic[M]):
    """A `KeyProvider` over storage and primitives that a subclass gives."""

    delays: ClassVar[tuple[timedelta, timedelta]] = (timedelta(0), timedelta(days=365))

    def __init__(self, *, now: Callable[[], datetime]) -> None:
        self._now = now

    # --- what a subclass gives ------------------------------------------------------------

    @abstractmethod
    def _read(self, key: KeyId, *, fresh: bool = False) -> Record:
        """Return the record, at most briefly out of date unless `fresh`. Raises `KeyNotFound`."""

    @abstractmethod
    def _changing(self, key: KeyId) -> AbstractContextManager[Record | None]:
        """Give the exclusive right to change `key`, with its newest record if there is one."""

    @abstractmethod
    def _names(self) -> Iterable[KeyId]:
        """Return the ids of all keys, in any order."""

    @abstractmethod
    def _make(self, key: KeyId, algorithm: Algorithm, number: int) -> Made[M]:
        """Make the material of a version."""

    @abstractmethod
    def _save(self, before: Record | None, after: Record, made: Made[M] | None) -> None:
        """Store `after` and enforce what changed since `before`."""

    @abstractmethod
    def _sign(self, record: Record, version: Version, message: bytes) -> bytes:
        """Sign with a version that may."""

    @abstractmethod
    def _seal(
        self, record: Record, version: Version, data_key: bytes, context: WrapContext
    ) -> bytes:
        """Encrypt under a version that may."""

    @abstractmethod
    def _open(self, record: Record, version: Version, sealed: bytes, context: WrapContext) -> bytes:
        """Decrypt under a version that may. Raises `WrongContext`."""

    # --- keys and their uses --------------------------------------------------------------

    def create(self, key: KeyId, *, algorithm: Algorithm, purpose: Purpose) -> KeyInfo:
        """Make a key with an active version 1."""
        with self._changing(key_id(key)) as known:
            if known is not None:
                raise KeyExists(f"the key {key} exists")
            made = self._make(key, algorithm, 1)
            created = records.first(key, algorithm, purpose, made.public, self._now())
            self._save(None, created, made)
        return created.info()

    def describe(self, key: KeyId) -> KeyInfo:
        """Return what is known of the active version."""
        return self._shown(key).info()

    def list_keys(self) -> tuple[KeyInfo, ...]:
        """Return every key as `describe` does, ordered by id."""
        return tuple(self.describe(key) for key in sorted(self._names()))

    def versions(self, key: KeyId) -> tuple[KeyInfo, ...]:
        """Return every version, oldest first."""
        shown = self._shown(key)
        return tuple(shown.info(version) for version in shown.versions)

    def public_key(self, key: KeyId, version: int | None = None) -> PublicKey:
        """Return the public key of a version that is not destroyed."""
        try:
            return self._shown(key).public_key(version)
        except KeyNotFound:  # another process may have rotated a moment ago
            return self._read(key_id(key), fresh=True).swept(self._now()).public_key(version)

    def sign(self, key: KeyId, message: bytes) -> Signature:
        """Sign with the active version."""
        value, version, record = self._with_active(
            key, lambda record, version: self._sign(record, version, message), signing=True
        )
        return Signature(key, version.number, record.algorithm, value)

    def _with_active(
        self, key: KeyId, use: Callable[[Record, Version], T], *, signing: bool
    ) -> tuple[T, Version, Record]:
        """Use the active version; when the custody has retired it meanwhile, the one after it."""
        record = self._read(key_id(key))
        version = record.to_use(signing=signing)
        try:
            return use(record, version), version, record
        except (KeyRetired, KeyDisabled):
            record = self._read(key, fresh=True)
            version = record.to_use(signing=signing)
            return use(record, version), version, record

    def verify(self, key: KeyId, message: bytes, signature: Signature) -> bytes:
        """Return `message` if this key's version made `signature`."""
        public = self.public_key(key, signature.version)
        if signature.key_id != key or signature.algorithm is not public.algorithm:
            raise SignatureInvalid("the signature names another key")
        return public.verify(message, signature.value)

    def wrap(self, key: KeyId, data_key: bytes, context: WrapContext) -> bytes:
        """Return version (4 bytes) ‖ what the custody made of it."""
        if not 0 < len(data_key) <= MAX_DATA_KEY:
            self._read(key_id(key)).to_use(signing=False)
            raise WrongKeyUse(f"a data key has 1 to {MAX_DATA_KEY} bytes")
        sealed, version, _ = self._with_active(
            key, lambda record, v: self._seal(record, v, data_key, context), signing=False
        )
        return version.number.to_bytes(VERSION_BYTES, "big") + sealed

    def unwrap(self, key: KeyId, wrapped: bytes, context: WrapContext) -> bytes:
        """Open what `wrap` made."""
        record = self._read(key_id(key))
        number = int.from_bytes(wrapped[:VERSION_BYTES], "big")
        if number > record.versions[-1].number:
            record = self._read(key, fresh=True)
        version = record.to_unwrap(number)
        if not VERSION_BYTES < len(wrapped) <= MAX_WRAPPED:
            raise WrongContext("this is not a wrapped key")
        try:
            return self._open(record, version, wrapped[VERSION_BYTES:], context)
        except (KeyRetired, KeyDisabled):
            self._read(key, fresh=True).to_unwrap(number)  # it says what happened meanwhile
            raise

    def data_key(self, key: KeyId, context: WrapContext) -> DataKey:
        """Make a data key of 32 bytes and wrap it."""
        plaintext = os.urandom(DATA_KEY_BYTES)
        return DataKey(plaintext, self.wrap(key, plaintext, context))

    def rewrap(self, key: KeyId, wrapped: bytes, context: WrapContext) -> bytes:
        """Wrap anew under the active version."""
        return self.wrap(key, self.unwrap(key, wrapped, context), context)

    # --- their life -----------------------------------------------------------------------

    def stage(self, key: KeyId) -> KeyInfo:
        """Make a pending version."""
        with self._existing(key) as before:
            if before.pending is not None:
                raise BadTransition(f"{key} has a pending version already")
            made = self._make(key, before.algorithm, before.next_number)
            after = before.staged(made.public, self._now(), made.number)
            self._save(before, after, made)
        return after.info(after.pending)

    def rotate(self, key: KeyId) -> KeyInfo:
        """Activate the pending version, or a fresh one."""
        with self._existing(key) as before:
            before.check_enabled()
            if before.pending is not None:
                after, made = before.promoted(), None
            else:
                made = self._make(key, before.algorithm, before.next_number)
                after = before.rotated(made.public, self._now(), made.number)
            self._save(before, after, made)
        return after.info()

    def disable(self, key: KeyId) -> KeyInfo:
        """Refuse every use of the key until `enable`."""
        return self._switch(key, disabled=True)

    def enable(self, key: KeyId) -> KeyInfo:
        """Undo `disable`."""
        return self._switch(key, disabled=False)

    def _switch(self, key: KeyId, *, disabled: bool) -> KeyInfo:
        with self._existing(key) as before:
            if before.disabled is disabled:
                return before.info()
            after = before.switched(disabled=disabled)
            self._save(before, after, None)
        return after.info()

    def retire(self, key: KeyId, version: int) -> KeyInfo:
        """End a version: it opens nothing any more, its public key still verifies."""
        with self._existing(key) as before:
            after = before.retired(version)
            self._save(before, after, None)
        return after.info(after.version(version))

    def destroy(self, key: KeyId, version: int, *, delay: timedelta) -> KeyInfo:
        """Have a retired version destroyed after `delay`."""
        shortest, longest = self.delays
        if not shortest <= delay <= longest:
            raise BadTransition(
                f"here destruction is delayed by {shortest.days} to {longest.days} days"
            )
        with self._existing(key) as before:
            after = before.doomed(version, self._now() + delay)
            self._save(before, after, None)
        return after.info(after.version(version))

    def cancel_destruction(self, key: KeyId, version: int) -> KeyInfo:
        """Keep a version whose time has not come."""
        with self._existing(key) as before:
            after = before.spared(version, self._now())
            self._save(before, after, None)
        return after.info(after.version(version))

    def purge(self) -> tuple[KeyInfo, ...]:
        """Erase the material of every version whose time of destruction has come."""
        gone: list[KeyInfo] = []
        for key in sorted(self._names()):
            if not self._read(key).due(self._now()):
                continue
            with self._existing(key) as before:
                due = [version.number for version in before.due(self._now())]
                after = before.swept(self._now())
                self._save(before, after, None)
            gone += [after.info(after.version(number)) for number in due]
        return tuple(gone)

    def _shown(self, key: KeyId) -> Record:
        return self._read(key_id(key)).swept(self._now())

    @contextmanager
    def _existing(self, key: KeyId) -> Iterator[Record]:
        with self._changing(key_id(key)) as record:
            if record is None:
                raise KeyNotFound(f"there is no key {key}")
            yield record
