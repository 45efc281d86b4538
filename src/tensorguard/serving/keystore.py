"""Evaluation keys on disk: named by tenant and content, bounded, and gone when nobody uses them.

They are public (they cannot decrypt), but each belongs to one tenant: another tenant's digest is not
found, even where the bytes would be the same. When the store is full, the tenant that holds the most
loses what it used least recently, so that one tenant cannot push out the others.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tensorguard.crypto.files import private_folder, read_bounded, write_atomic
from tensorguard.errors import MalformedInput, NotFound, TooLarge, VerificationError
from tensorguard.wire.frames import PARAMETERS_ID_SIZE, frame_digest

TOUCH_SECONDS = 60  # how exactly "last used" is known
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PARAMETERS_AT = 8  # where a frame holds its parameter id


class KeysUnknown(NotFound):
    code = "evaluation_keys_unknown"
    remedy = "Upload the evaluation keys with PUT /v1/evaluation-keys/{sha256}, then try again."


class DigestMismatch(VerificationError):
    code = "digest_mismatch"
    remedy = "Name the SHA-256 of exactly the bytes that are sent."


@dataclass(frozen=True, slots=True)
class StoredKeys:
    """What is known of one stored frame without parsing it."""

    digest: str
    size: int
    parameters_id: bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    tenant: str  # the folder's name
    size: int
    used: float


class KeyStore:
    """One folder per tenant (named by a hash), one file per frame. Safe to use from threads."""

    def __init__(
        self,
        folder: Path,
        *,
        total_bytes: int,
        tenant_keys: int,
        keep_seconds: float,
        now: Callable[[], float],
    ) -> None:
        self._folder = private_folder(folder)
        self._total_bytes = total_bytes
        self._tenant_keys = tenant_keys
        self._keep_seconds = keep_seconds
        self._now = now
        self._lock = threading.Lock()

    def put(self, tenant: str, digest: str, frame: bytes) -> bool:
        """Keep `frame`, making room if need be. Returns whether it is new."""
        path = self._path(tenant, digest)
        if not hmac.compare_digest(frame_digest(frame), digest):
            raise DigestMismatch("the body does not have the digest in the path")
        if len(frame) > self._total_bytes:
            raise TooLarge(f"the gateway keeps {self._total_bytes} bytes of evaluation keys")
        with self._lock:
            new = not path.is_file()
            if new:
                self._make_room(path.parent.name, len(frame))
                private_folder(path.parent)
                write_atomic(path, frame)
            self._touch(path)
        return new

    def find(self, tenant: str, digest: str) -> StoredKeys:
        """Return what is stored under `digest`, and remember that it was used."""
        path = self._path(tenant, digest)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                head = file.read(_PARAMETERS_AT + PARAMETERS_ID_SIZE)
        except FileNotFoundError:
            raise KeysUnknown("these evaluation keys are not stored here") from None
        if self._now() - status.st_mtime > self._keep_seconds:
            raise KeysUnknown("these evaluation keys have expired")
        if self._now() - status.st_mtime > TOUCH_SECONDS:
            self._touch(path)
        return StoredKeys(digest, status.st_size, head[_PARAMETERS_AT:])

    def read(self, tenant: str, digest: str) -> bytes:
        """Return the frame. One that was damaged on disk is removed, and then unknown."""
        path = self._path(tenant, digest)
        try:
            frame = read_bounded(path, limit=self._total_bytes, private=True)
        except NotFound:
            raise KeysUnknown("these evaluation keys are not stored here") from None
        if hashlib.sha256(frame).hexdigest() != digest:
            path.unlink(missing_ok=True)
            raise KeysUnknown("these evaluation keys were damaged on disk")
        return frame

    def delete(self, tenant: str, digest: str) -> None:
        """Remove a frame. Raises `KeysUnknown`."""
        try:
            self._path(tenant, digest).unlink()
        except FileNotFoundError:
            raise KeysUnknown("these evaluation keys are not stored here") from None

    def sweep(self) -> int:
        """Remove what has expired. Returns the bytes that are left."""
        oldest = self._now() - self._keep_seconds
        left = 0
        with self._lock:
            for entry in self._entries():
                if entry.used < oldest:
                    entry.path.unlink(missing_ok=True)
                else:
                    left += entry.size
        return left

    def _path(self, tenant: str, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise MalformedInput("a digest is 64 lower-case hex digits")
        return self._folder / hashlib.sha256(tenant.encode()).hexdigest() / digest

    def _touch(self, path: Path) -> None:
        os.utime(path, (self._now(), self._now()))

    def _entries(self) -> Iterator[_Entry]:
        for path in self._folder.glob("*/*"):
            if _DIGEST.fullmatch(path.name):
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue  # removed by a request meanwhile
                yield _Entry(path, path.parent.name, status.st_size, status.st_mtime)

    def _make_room(self, tenant: str, size: int) -> None:
        held: dict[str, list[_Entry]] = defaultdict(list)
        for entry in sorted(self._entries(), key=lambda entry: entry.used, reverse=True):
            held[entry.tenant].append(entry)  # the least recently used is last
        while len(held[tenant]) >= self._tenant_keys:
            held[tenant].pop().path.unlink(missing_ok=True)
        weights = {name: sum(e.size for e in entries) for name, entries in held.items()}
        weights[tenant] = weights.get(tenant, 0) + size
        while sum(weights.values()) > self._total_bytes:
            heaviest = max((n for n in weights if held[n]), key=lambda name: weights[name])
            entry = held[heaviest].pop()
            entry.path.unlink(missing_ok=True)
            weights[heaviest] -= entry.size
