"""The file key provider: one sealed file per key, opened only by the master key, never rolled back.

Each key has a sealing key of its own, HKDF-SHA256(master, info = key id); the associated data is the
canonical record, so that no field can be edited and no file swapped. An index holds the newest
generation of each key under HMAC: an older file that is put back is refused. (Putting back the whole
folder is invisible to any provider that keeps its state in that folder; see docs/threat-model.md.)
`tensorguard.keys.folder` and docs/formats/key-file.md describe the files.

Opened keys stay in memory. A change that another process makes is noticed within `RECHECK` seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from pydantic import SecretBytes

from tensorguard.errors import TensorGuardError
from tensorguard.gates import weakness
from tensorguard.keys.custody import Custody, Made
from tensorguard.keys.folder import NONCE_BYTES, Epoch, KeyFolder, Stamp
from tensorguard.keys.provider import (
    MAX_WRAPPED,
    VERSION_BYTES,
    Algorithm,
    KeyId,
    KeyNotFound,
    KeyProviderUnusable,
    KeyState,
    Signature,
    WrapContext,
    WrongContext,
    WrongKeyUse,
    key_id,
)
from tensorguard.keys.record import Record, Version
from tensorguard.keys.software import SoftwareKey

RECHECK: Final = 0.05  # seconds for which an opened key is used without looking at its file
_SEALED_AT: Final = VERSION_BYTES + NONCE_BYTES
_OPENS = frozenset({KeyState.active, KeyState.decrypt_only})
MAX_OPENERS: Final = 4096  # contexts whose encoding is kept; encoding costs ten decryptions
Opener = tuple[Callable[[bytes, bytes, bytes], bytes], bytes]


class _Opened:
    """A key in memory, with what its hot paths need looked up already."""

    __slots__ = ("checked", "epoch", "keys", "openers", "record", "signer", "stamp")

    def __init__(
        self, epoch: Epoch, stamp: Stamp | None, record: Record, privates: dict[int, bytes]
    ) -> None:
        self.epoch, self.stamp, self.record, self.checked = epoch, stamp, record, 0.0
        self.keys = {n: SoftwareKey(record.algorithm, raw) for n, raw in privates.items()}
        self.openers: dict[tuple[bytes, str, str], Opener] = {}
        self.signer: tuple[int, Callable[[bytes], bytes]] | None = None
        active = record.active
        if active is not None and not record.disabled:
            sign = self.keys[active.number].sign
            self.signer = None if sign is None else (active.number, sign)

    def opener(self, number: bytes, context: WrapContext) -> Opener | None:
        """Return how to open what `number` wrapped under `context`, if it may be opened."""
        version = int.from_bytes(number, "big")
        key = self.keys.get(version)
        if self.record.disabled or key is None or key.aead is None:
            return None
        if self.record.version(version).state not in _OPENS:
            return None
        found = (key.aead.decrypt, context.associated_data(self.record.key_id, version))
        if len(self.openers) >= MAX_OPENERS:
            self.openers.clear()
        self.openers[number, context.purpose, context.tenant] = found
        return found


class FileKeyProvider(Custody[SoftwareKey]):
    """Keys in files under one folder, sealed by a 32-byte master key.

    `next_master` is a second key that may be in force: give it to every process before a rewrap, and
    none of them has to stop for it.
    """

    name = "file"

    def __init__(
        self,
        folder: Path,
        master: SecretBytes,
        *,
        now: Callable[[], datetime],
        next_master: SecretBytes | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(now=now)
        masters = (master,) if next_master is None else (master, next_master)
        self._folder = KeyFolder(folder, masters)
        self._monotonic = monotonic
        self._opened: dict[KeyId, _Opened] = {}

    # --- the hot paths --------------------------------------------------------------------

    def sign(self, key: KeyId, message: bytes) -> Signature:
        """Sign with the active version."""
        opened = self._opened.get(key)
        if opened is None or self._monotonic() - opened.checked > RECHECK:
            opened = self._fresh(key)
        if opened.signer is None:
            return super().sign(key, message)  # it says why not
        number, sign = opened.signer
        return Signature(key, number, opened.record.algorithm, sign(message))

    def unwrap(self, key: KeyId, wrapped: bytes, context: WrapContext) -> bytes:
        """Open what `wrap` made: version (4) ‖ nonce (12) ‖ ciphertext and tag."""
        opened = self._opened.get(key)
        if opened is None or self._monotonic() - opened.checked > RECHECK:
            opened = self._fresh(key)
        number = wrapped[:VERSION_BYTES]
        found = opened.openers.get((number, context.purpose, context.tenant))
        if found is None:
            found = opened.opener(number, context)
        if found is None or len(wrapped) > MAX_WRAPPED:
            return super().unwrap(key, wrapped, context)  # it says why not
        try:
            return found[0](wrapped[VERSION_BYTES:_SEALED_AT], wrapped[_SEALED_AT:], found[1])
        except (InvalidTag, ValueError) as error:
            raise WrongContext("the wrapped key does not open under this context") from error

    # --- a new master ---------------------------------------------------------------------

    def master_rewrap(
        self, new: SecretBytes, *, progress: Callable[[KeyId], None] = lambda _: None
    ) -> int:
        """Seal every key under the master key `new`; return how many were sealed by this call.

        Old files stay in force until all new ones are written; killed at any point, it goes on when
        it is called again. Afterwards the old master opens nothing.
        """
        reason = weakness(new.get_secret_value())
        if reason is not None:
            raise KeyProviderUnusable(f"the new master key {reason}")
        count = self._folder.rewrap(new, progress)
        self._opened.clear()
        return count

    # --- what `Custody` asks --------------------------------------------------------------

    def _fresh(self, key: KeyId, *, force: bool = False) -> _Opened:
        known, moment = self._opened.get(key), self._monotonic()
        if known is None or force or known.stamp != self._folder.stamp(known.epoch, key):
            try:
                known = _Opened(*self._folder.read(key))
            except TensorGuardError:
                self._opened.pop(key, None)
                raise
            self._opened[key] = known
        known.checked = moment
        return known

    def _read(self, key: KeyId, *, fresh: bool = False) -> Record:
        known = self._opened.get(key)
        if known is None or fresh or self._monotonic() - known.checked > RECHECK:
            known = self._fresh(key, force=fresh)
        return known.record

    @contextmanager
    def _changing(self, key: KeyId) -> Iterator[Record | None]:
        with self._folder.administration():
            try:
                record = self._read(key, fresh=True)
            except KeyNotFound:
                yield None
            else:
                yield record

    def _names(self) -> Iterable[KeyId]:
        return self._folder.names()

    def _make(
        self,
        key: KeyId,  # noqa: ARG002 - nothing is stored before `_save`
        algorithm: Algorithm,
        number: int,  # noqa: ARG002
    ) -> Made[SoftwareKey]:
        material = SoftwareKey.generate(algorithm)
        return Made(material.public, material)

    def _save(self, before: Record | None, after: Record, made: Made[SoftwareKey] | None) -> None:
        known = {} if before is None else self._fresh(after.key_id).keys
        privates = {number: key.private for number, key in known.items()}
        if made is not None:
            privates[after.versions[-1].number] = made.material.private
        alive = {v.number for v in after.versions if v.state is not KeyState.destroyed}
        self._folder.write(after, {n: raw for n, raw in privates.items() if n in alive})
        self._fresh(after.key_id, force=True)

    def _sign(self, record: Record, version: Version, message: bytes) -> bytes:
        sign = self._key(record, version).sign
        if sign is None:
            raise WrongKeyUse(f"{record.key_id} does not sign messages")
        return sign(message)

    def _seal(
        self, record: Record, version: Version, data_key: bytes, context: WrapContext
    ) -> bytes:
        aead = self._key(record, version).aead
        if aead is None:
            raise WrongKeyUse(f"{record.key_id} does not wrap data keys")
        nonce = os.urandom(NONCE_BYTES)
        bound = context.associated_data(record.key_id, version.number)
        return nonce + aead.encrypt(nonce, data_key, bound)

    def _open(self, record: Record, version: Version, sealed: bytes, context: WrapContext) -> bytes:
        aead = self._key(record, version).aead
        if aead is None:
            raise WrongKeyUse(f"{record.key_id} does not wrap data keys")
        bound = context.associated_data(record.key_id, version.number)
        try:
            return aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
        except (InvalidTag, ValueError) as error:
            raise WrongContext("the wrapped key does not open under this context") from error

    def _key(self, record: Record, version: Version) -> SoftwareKey:
        known = self._opened.get(record.key_id)
        if known is None or version.number not in known.keys:
            known = self._fresh(key_id(record.key_id), force=True)
        return known.keys[version.number]
