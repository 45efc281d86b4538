"""The packs that are served: those of one folder that verify and load. The others harm nobody.

The folder is looked at again and again; a file that appears is read, verified against the trust store,
loaded into a worker (which verifies it once more) and only then served. A file that is replaced is
swapped in one step: until the new pack is loaded, the old one is served. A file that goes is no longer
served. A file that was refused is not tried again until something changes. When the trust store
changes, every pack is verified anew: a signer who was removed signs nothing that is served.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tensorguard.crypto.files import read_bounded
from tensorguard.crypto.trust import TrustStore
from tensorguard.errors import Conflict, NotFound, TensorGuardError, TooLarge, Unavailable
from tensorguard.moai import pack as packs
from tensorguard.serving.cache import KeyShape
from tensorguard.serving.pool import Pool
from tensorguard.wire.models import ModelView

log = logging.getLogger(__name__)

SUFFIX = ".moai"
MAX_FILES = 4096  # directory entries that one look considers

Identity = tuple[int, int, int]  # inode, size, time: another file has another
Snapshot = dict[Path, Identity]


class ModelUnknown(NotFound):
    code = "model_unknown"
    remedy = "List the models with GET /v1/models; a grant names the packs that it is for."


class TooManyPacks(TooLarge):
    code = "too_many_packs"
    remedy = "Remove packs from TG_PACK_DIR, or raise TG_MAX_PACKS."


class NameTaken(Conflict):
    code = "model_name_taken"
    remedy = "Give the pack another name or version, or remove the other file."


@dataclass(frozen=True, slots=True)
class Served:
    """One model that can be used now."""

    pack_id: str
    view: ModelView
    view_json: bytes
    shape: KeyShape


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it was when it was last read, and what became of it."""

    identity: Identity
    pack_id: str | None  # None: it was refused


class Catalogue:
    """Keeps the served models equal to the good packs of a folder."""

    def __init__(
        self,
        folder: Path,
        trust_store: Path,
        pool: Pool,
        *,
        max_packs: int,
        pack_bytes: int,
        on_refused: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._trust_store = trust_store
        self._pool = pool
        self._max_packs = max_packs
        self._pack_bytes = pack_bytes
        self._on_refused = on_refused
        self._files: dict[Path, _Seen] = {}
        self._trusted: Snapshot = {}
        self._served: dict[str, Served] = {}
        self._lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._served)

    def models(self, granted: Collection[str]) -> tuple[Served, ...]:
        """Return the granted models, by name, newest version first."""
        found = [served for pack_id, served in self._served.items() if pack_id in granted]
        found.sort(key=lambda served: version_order(served.view.version), reverse=True)
        return tuple(sorted(found, key=lambda served: served.view.name))

    def model(self, name: str, version: str | None, granted: Collection[str]) -> Served:
        """Return a granted model, by default its newest version. Raises `ModelUnknown`."""
        for served in self.models(granted):
            if served.view.name == name and version in {None, served.view.version}:
                return served
        raise ModelUnknown("there is no such model for this grant")

    def shapes(self, parameters_id: bytes, granted: Collection[str]) -> dict[KeyShape, Served]:
        """Return one granted model for each form of evaluation keys with these parameters."""
        return {
            served.shape: served
            for served in self.models(granted)
            if served.shape.parameters_id == parameters_id
        }

    async def scan(self) -> None:
        """Look at the folder once, and load, swap or drop what changed."""
        async with self._lock:
            present = await asyncio.to_thread(_snapshot, self._folder, SUFFIX)
            trusted = await asyncio.to_thread(_snapshot, self._trust_store, ".json")
            trust_changed, self._trusted = trusted != self._trusted, trusted
            gone = [path for path in self._files if path not in present]
            changed = [
                path
                for path, seen in self._files.items()
                if path in present and (present[path] != seen.identity or trust_changed)
            ]
            for path in gone:
                await self._forget(path)
            if gone or changed:  # what was refused for want of room or a free name is tried again
                self._files = {p: seen for p, seen in self._files.items() if seen.pack_id}
            for path, identity in present.items():
                if path in changed or path not in self._files:
                    await self._take(path, identity, keep_old=not trust_changed)

    async def _take(self, path: Path, identity: Identity, *, keep_old: bool) -> None:
        """Serve the pack in a file, instead of the one that was in it before."""
        before = self._files.get(path)
        pack_id = None
        try:
            pack_id = await self._load(path, instead_of=before.pack_id if before else None)
        except Unavailable as error:  # not the pack's fault: it is tried again at the next look
            log.warning("a pack cannot be loaded now", extra={"file": path.name, "why": str(error)})
            if not keep_old:
                await self._forget(path)
            return
        except TensorGuardError as error:
            self._on_refused()
            log.warning(
                "a pack is refused",
                extra={"file": path.name, "code": error.code, "why": str(error)},
            )
            await self._forget(path)
        self._files[path] = _Seen(identity, pack_id)

    async def _load(self, path: Path, *, instead_of: str | None) -> str:
        others = {key: served for key, served in self._served.items() if key != instead_of}
        if len(others) >= self._max_packs:
            raise TooManyPacks(f"{self._max_packs} packs are loaded already")
        data, pack = await asyncio.to_thread(self._verified, path)
        view = pack.spec.view()
        for other in others.values():
            if (other.view.name, other.view.version) == (view.name, view.version):
                raise NameTaken(f"{view.name} {view.version} is served already")
        await self._pool.load(pack.pack_id, data)
        shape = KeyShape.of(pack.spec)
        self._served = {**others, pack.pack_id: Served(pack.pack_id, view, view.to_json(), shape)}
        if instead_of not in {None, pack.pack_id}:
            await self._pool.drop(str(instead_of))
        log.info(
            "a pack is served",
            extra={
                "pack": pack.pack_id,
                "model": view.name,
                "version": view.version,
                "signer": pack.signer_name,
                "instead_of": instead_of,
            },
        )
        return pack.pack_id

    def _verified(self, path: Path) -> tuple[bytes, packs.VerifiedPack]:
        trust = TrustStore.from_folder(self._trust_store)
        data = read_bounded(path, limit=self._pack_bytes)
        return data, packs.verify(packs.read(data, limit=self._pack_bytes), trust)

    async def _forget(self, path: Path) -> None:
        seen = self._files.pop(path, None)
        if seen is not None and seen.pack_id is not None:
            self._served.pop(seen.pack_id, None)
            await self._pool.drop(seen.pack_id)
            log.info("a pack is no longer served", extra={"pack": seen.pack_id})


def _snapshot(folder: Path, suffix: str) -> Snapshot:
    found: Snapshot = {}
    for _, path in zip(range(MAX_FILES), folder.iterdir(), strict=False):
        if path.suffix != suffix or path.name.startswith("."):
            continue
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # removed between listing and looking
        found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return dict(sorted(found.items()))


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key under which 1.10 comes after 1.9, and 1.0 after 1.0-rc1."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    key = tuple((1, int(p), "") if p.isdigit() else (-1, 0, p) for p in parts)
    return (*key, (0, 0, ""))
