"""Where pack content lies: TG_HOME/packs/<tenant>/<pack id>.moai, written whole, checked when read."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from tensorguard.crypto.files import private_folder, read_bounded, write_atomic
from tensorguard.errors import NotFound, TensorGuardError, Unavailable

_SAFE: Final = re.compile(r"[a-z0-9-]{1,64}")  # a UUID or hex digits: no separator, no dot


class PackContentLost(Unavailable):
    code = "pack_content_lost"
    remedy = "Restore TG_HOME/packs from a backup, or upload the pack again after retiring it."


class PackStore:
    """The packs of one tenant as files."""

    def __init__(self, home: Path, *, tenant_id: str) -> None:
        self._home = home
        self._tenant = _safe(tenant_id)

    def write(self, pack_id: str, data: bytes) -> None:
        """Store the content of a verified pack, durably."""
        packs = private_folder(self._home / "packs")
        write_atomic(private_folder(packs / self._tenant) / f"{_safe(pack_id)}.moai", data)

    def read(self, pack_id: str, *, sha256: str, limit: int) -> bytes:
        """Return the content that was stored. Raises `PackContentLost` for any other."""
        path = self._home / "packs" / self._tenant / f"{_safe(pack_id)}.moai"
        try:
            data = read_bounded(path, limit=limit, private=True)
        except TensorGuardError as error:
            raise PackContentLost("the content of this pack cannot be read") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise PackContentLost("the content of this pack was changed on the disk")
        return data


def _safe(name: str) -> str:
    if not _SAFE.fullmatch(name):
        raise NotFound("there is no such pack")
    return name
