"""The secret key of one model view, and one frame of evaluation keys that belongs to it."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Final

import msgspec

from tensorguard.crypto.files import read_bounded, write_atomic
from tensorguard.errors import NotFound
from tensorguard.moai.client import ClientKeys
from tensorguard.sdk.keystore import Keystore
from tensorguard.wire.models import ModelView

MAX_EVALUATION_KEYS: Final = 1 << 30  # bytes of our own file


class KeyFolder:
    """The keys of one model view: in memory only, or in a keystore and a file beside it."""

    def __init__(self, view: ModelView, kept: Keystore | None, path: Path | None) -> None:
        self.view = view
        self._path = path
        self._frame: bytes | None = None
        found = None if kept is None else kept.load(view)
        self.keys = ClientKeys.generate(view) if found is None else found
        if kept is not None and found is None:
            kept.save(self.keys)

    @property
    def in_memory(self) -> bool:
        """Whether the keys end with this process."""
        return self._path is None

    def evaluation_keys(self) -> bytes:
        """Return one frame of evaluation keys, the same one every time. They are public."""
        if self._path is None:
            self._frame = self._frame or self.keys.evaluation_keys()
            return self._frame
        beside = self._beside(self._path)
        try:
            return read_bounded(beside, limit=MAX_EVALUATION_KEYS, private=True)
        except NotFound:
            frame = self.keys.evaluation_keys()
            write_atomic(beside, frame)
            return frame

    def _beside(self, path: Path) -> Path:
        """Name the file after the secret key (by a keyed hash) and the form: none is mixed up.

        Evaluation keys of another secret would give wrong answers without any error.
        """
        secret = self.keys.to_frame()
        form = [self.view.parameters_id, self.view.rotations, self.view.relinearisation]
        name = hmac.digest(secret, b"evaluation keys" + msgspec.json.encode(form), "sha256").hex()
        return path.with_name(f"{path.name}.{name[:16]}.evaluation")
