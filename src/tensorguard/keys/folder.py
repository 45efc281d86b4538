"""The folder of the file provider: sealed files under an index, one epoch for each master key.

    DIR/current.tgkeys          which epoch is in force; replaced once, atomically, by `rewrap`
    DIR/rewrap.tgkeys           the journal of a rewrap that has not ended
    DIR/EPOCH/KEY.tgkey         a record in canonical JSON and, per version, its sealed private bytes
    DIR/EPOCH/index.tgkeys      the newest generation of every key, under HMAC
    DIR/admin, DIR/lock         flock(2): who changes keys; who reads or writes a file and its index

EPOCH is derived from the master key, so that a wrong master finds nothing. A rewrap fills the epoch
of the new master beside the old one and then replaces `current.tgkeys`: at every instant exactly one
complete epoch is in force, and a killed rewrap goes on where it stopped.
"""

from __future__ import annotations

import base64
import fcntl
import hmac
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretBytes

from tensorguard.crypto import canonical
from tensorguard.crypto.files import private_folder, read_bounded, sync_folder, write_atomic
from tensorguard.crypto.hybrid import unbase64
from tensorguard.errors import MalformedInput, NotFound
from tensorguard.keys.provider import (
    BadKeyId,
    KeyId,
    KeyNotFound,
    KeyProviderUnusable,
    KeyState,
    KeyUnusable,
    key_id,
)
from tensorguard.keys.record import FORMAT, MAX_RECORD, Record

CURRENT, JOURNAL, INDEX, SUFFIX = "current.tgkeys", "rewrap.tgkeys", "index.tgkeys", ".tgkey"
MASTER_BYTES: Final = 32
NONCE_BYTES: Final = 12
MAX_KEY_FILE, MAX_INDEX_FILE, MAX_SMALL_FILE = MAX_RECORD, 4 << 20, 4096

HEADER: Final = 0  # sealed with no content: it vouches for the header when no version is left
EPOCH: Final = re.compile(r"[0-9a-f]{16}")

Privates = Mapping[int, bytes]
Stamp = tuple[int, int, int, int]


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


class Master:
    """A master key: it seals nothing itself, each use has a key of its own (HKDF-SHA256)."""

    def __init__(self, secret: SecretBytes) -> None:
        if len(secret.get_secret_value()) != MASTER_BYTES:
            raise KeyProviderUnusable(f"the master key must have {MASTER_BYTES} bytes")
        self._secret = secret
        self.epoch = self.derive("epoch")[:8].hex()

    def derive(self, purpose: str) -> bytes:
        """Return the 32-byte key for one purpose."""
        hkdf = HKDF(hashes.SHA256(), 32, salt=None, info=f"{FORMAT}/{purpose}".encode())
        return hkdf.derive(self._secret.get_secret_value())


@dataclass(frozen=True, slots=True)
class Epoch:
    """The files of one master key."""

    folder: Path
    master: Master

    def path(self, key: KeyId) -> Path:
        """Return where `key` is kept."""
        return self.folder / f"{key_id(key)}{SUFFIX}"

    def seal(self, record: Record, privates: Privates) -> None:
        """Write the file of a key."""
        header = record.to_json()
        aead = AESGCM(self.master.derive(f"seal/{record.key_id}"))
        sealed = {}
        for number, private in (*privates.items(), (HEADER, b"")):
            nonce = os.urandom(NONCE_BYTES)
            bound = canonical.encode({"header": header, "version": number})
            sealed[str(number)] = _b64(nonce + aead.encrypt(nonce, private, bound))
        body = canonical.encode({"header": header, "sealed": sealed})
        if len(body) > MAX_KEY_FILE:
            raise KeyUnusable(f"the file of the key {record.key_id} would grow too large")
        write_atomic(self.path(record.key_id), body)

    def open(self, key: KeyId) -> tuple[Record, dict[int, bytes]]:
        """Read the file of a key. Raises `NotFound`, `KeyUnusable`, `UnsafeFile`."""
        data = read_bounded(self.path(key), limit=MAX_KEY_FILE, private=True)
        try:
            value = canonical.decode(data, limit=MAX_KEY_FILE)
            header, sealed = value["header"], value["sealed"]
            record = Record.from_json(header, key)
            aead = AESGCM(self.master.derive(f"seal/{key}"))
            alive = [v.number for v in record.versions if v.state is not KeyState.destroyed]
            privates = {}
            for number in (*alive, HEADER):
                raw = unbase64(sealed[str(number)])
                bound = canonical.encode({"header": header, "version": number})
                privates[number] = aead.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], bound)
            if value.keys() != {"header", "sealed"} or len(sealed) != len(privates):
                raise MalformedInput("the file has members that do not belong to it")
            del privates[HEADER]
        except (MalformedInput, BadKeyId, InvalidTag, KeyError, TypeError, ValueError) as error:
            raise KeyUnusable(f"the file of the key {key} does not open") from error
        return record, privates

    def generations(self) -> dict[KeyId, int]:
        """Read the index. Raises `KeyUnusable`."""
        try:
            data = read_bounded(self.folder / INDEX, limit=MAX_INDEX_FILE, private=True)
            value = canonical.decode(data, limit=MAX_INDEX_FILE)
            generations: dict[KeyId, int] = value["generations"]
            mac = unbase64(value["mac"], size=32)
            expected = self._mac(generations)
        except NotFound as error:
            raise KeyUnusable("the index of the key folder was removed") from error
        except (MalformedInput, KeyError, TypeError) as error:
            raise KeyUnusable("the index of the key folder is damaged") from error
        if not hmac.compare_digest(mac, expected):
            raise KeyUnusable("the index of the key folder was not written by its master key")
        return generations

    def record(self, generations: Mapping[KeyId, int]) -> None:
        """Write the index."""
        body = {"generations": dict(generations), "mac": _b64(self._mac(generations))}
        write_atomic(self.folder / INDEX, canonical.encode(body))

    def _mac(self, generations: Mapping[KeyId, int]) -> bytes:
        message = canonical.encode(dict(generations))
        return hmac.digest(self.master.derive("index"), message, "sha256")

    def names(self) -> set[KeyId]:
        """Return every key that has a file or an entry in the index."""
        files = {key_id(path.stem) for path in self.folder.glob(f"*{SUFFIX}")}
        return files | set(self.generations())

    def clean(self) -> None:
        """Remove what a killed writer left; nobody else writes now."""
        for path in self.folder.glob(".*"):
            path.unlink(missing_ok=True)


class KeyFolder:
    """Reads and writes keys under whichever of its masters is in force."""

    def __init__(self, folder: Path, masters: tuple[SecretBytes, ...]) -> None:
        self.path = private_folder(folder)
        self._masters = {m.epoch: m for m in map(Master, masters)}
        self._first = Master(masters[0])

    # --- reading --------------------------------------------------------------------------

    def epoch(self) -> Epoch:
        """Return the epoch in force. Raises `KeyUnusable` for a folder of another master."""
        with self._flock("lock", exclusive=False):
            return self._epoch()

    def _epoch(self) -> Epoch:
        named = self._named()
        if named is None:
            if any(self.path.glob(f"*/*{SUFFIX}")):
                raise KeyUnusable(f"{CURRENT} was removed from the key folder")
            return Epoch(self.path, self._first)  # nothing is kept here yet
        if named not in self._masters:
            raise KeyUnusable("the master key is not the one that sealed this folder")
        return Epoch(private_folder(self.path / named), self._masters[named])

    def _named(self) -> str | None:
        value = self._small(CURRENT)
        return None if value is None else str(value.get("epoch"))

    def _small(self, name: str) -> dict[str, Any] | None:
        try:
            data = read_bounded(self.path / name, limit=MAX_SMALL_FILE, private=True)
            value = canonical.decode(data, limit=MAX_SMALL_FILE)
        except NotFound:
            return None
        except MalformedInput as error:
            raise KeyUnusable(f"{name} of the key folder is damaged") from error
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise KeyUnusable(f"{name} of the key folder is damaged")
        return value

    def names(self) -> set[KeyId]:
        """Return the ids of all keys."""
        with self._flock("lock", exclusive=False):
            return set() if self._named() is None else self._epoch().names()

    def stamp(self, epoch: Epoch, key: KeyId) -> Stamp | None:
        """Return what changes whenever the file of `key` or the epoch in force does."""
        try:
            file, current = os.lstat(epoch.path(key)), os.lstat(self.path / CURRENT)
        except OSError:
            return None
        return (file.st_mtime_ns, file.st_ino, current.st_mtime_ns, current.st_ino)

    def read(self, key: KeyId) -> tuple[Epoch, Stamp | None, Record, dict[int, bytes]]:
        """Open a key. Raises `KeyNotFound`, `KeyUnusable`, `UnsafeFile`."""
        key_id(key)
        with self._flock("lock", exclusive=True):
            if self._named() is None:
                self._epoch()
                raise KeyNotFound(f"there is no key {key}")
            epoch = self._epoch()
            stamp = self.stamp(epoch, key)
            record, privates = self._checked(epoch, key)
            return epoch, stamp, record, privates

    def _checked(self, epoch: Epoch, key: KeyId) -> tuple[Record, dict[int, bytes]]:
        generations = epoch.generations()
        recorded = generations.get(key, 0)
        try:
            record, privates = epoch.open(key)
        except NotFound as error:
            if recorded:
                raise KeyUnusable(f"the file of the key {key} was removed") from error
            raise KeyNotFound(f"there is no key {key}") from error
        if record.generation == recorded + 1:  # a crash came between file and index
            epoch.record({**generations, key: record.generation})
        elif record.generation != recorded:
            raise KeyUnusable(f"the file of the key {key} is not the last one written")
        return record, privates

    # --- writing --------------------------------------------------------------------------

    @contextmanager
    def administration(self) -> Iterator[None]:
        """Wait until nobody else changes keys here, and finish what was begun."""
        with self._flock("admin", exclusive=True):
            self._finish()
            yield

    def write(self, record: Record, privates: Privates) -> None:
        """Store the next generation of a key, inside `administration`."""
        with self._flock("lock", exclusive=True):
            epoch = self._founded()
            epoch.clean()
            epoch.seal(record, privates)
            epoch.record({**epoch.generations(), record.key_id: record.generation})

    def _founded(self) -> Epoch:
        if self._named() is None:
            self._epoch()
            epoch = self._prepared(self._first)
            epoch.record({})
            self._commit(epoch)
        return self._epoch()

    def _prepared(self, master: Master) -> Epoch:
        return Epoch(private_folder(self.path / master.epoch), master)

    def _commit(self, epoch: Epoch) -> None:
        sync_folder(self.path)
        body = {"epoch": epoch.master.epoch, "format": FORMAT}
        write_atomic(self.path / CURRENT, canonical.encode(body))

    # --- a new master ---------------------------------------------------------------------

    def rewrap(self, new: SecretBytes, progress: Callable[[KeyId], None]) -> int:
        """Seal every key under `new` and put it in force. Return how many keys were sealed now."""
        master, count = Master(new), 0
        with self.administration():
            old = self.epoch()
            if self._named() is None or old.master.epoch == master.epoch:
                return 0
            journal = {"format": FORMAT, "from": old.master.epoch, "to": master.epoch}
            write_atomic(self.path / JOURNAL, canonical.encode(journal))
            target = self._prepared(master)
            target.clean()
            generations: dict[KeyId, int] = {}
            for key in sorted(old.names()):
                record, privates = self._checked(old, key)
                generations[key] = record.generation
                if not _sealed(target, record):
                    target.seal(record, privates)
                    count += 1
                progress(key)
            target.record(generations)
            self._masters[master.epoch] = master
            with self._flock("lock", exclusive=True):
                self._commit(target)
            self._finish()
        return count

    def _finish(self) -> None:
        """Remove the old epoch of a rewrap whose new one is in force."""
        for path in self.path.glob(".*.tgkeys.*"):  # left by a killed writer
            path.unlink(missing_ok=True)
        journal, current = self._small(JOURNAL), self._named()
        if journal is None or journal.get("to") != current:
            return
        name = str(journal.get("from"))
        if not EPOCH.fullmatch(name) or name == current:
            raise KeyUnusable(f"{JOURNAL} of the key folder is damaged")
        old = self.path / name
        if old.is_dir() and not old.is_symlink():
            for path in old.iterdir():
                path.unlink(missing_ok=True)
            old.rmdir()
        (self.path / JOURNAL).unlink(missing_ok=True)
        sync_folder(self.path)

    @contextmanager
    def _flock(self, name: str, *, exclusive: bool) -> Iterator[None]:
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path / name, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)


def _sealed(target: Epoch, record: Record) -> bool:
    try:
        known, _ = target.open(record.key_id)
    except (NotFound, KeyUnusable):
        return False
    return known == record
