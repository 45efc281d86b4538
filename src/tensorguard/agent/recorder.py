"""Record from any Python process of the robot, straight into the spool that the agent delivers.

What `flush` returned for is on the disk. Samples of the priority `safety` are flushed at once, the
others when `BUFFER` are collected, when the oldest is a second old at the next `record`, or on `close`.
While the disk takes nothing they stay in the buffer, which is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Final, Self

from tensorguard.agent import records
from tensorguard.agent.config import AgentConfig
from tensorguard.agent.records import Priority, Record
from tensorguard.agent.schema import SpoolUnavailable
from tensorguard.agent.spool import FILE, Spool
from tensorguard.crypto.files import private_folder
from tensorguard.errors import Unavailable
from tensorguard.settings import Settings

BUFFER: Final = 500
MAX_BUFFERED: Final = 10_000
MAX_AGE: Final = 1.0  # seconds


class BufferFull(Unavailable):
    code = "recorder_full"
    remedy = "Make room on the disk of the agent's folder, or record less."


class Recorder:
    """Writes samples into a robot's spool. Safe to use from several threads."""

    def __init__(
        self,
        spool: Spool,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = spool
        self._now_ns, self._monotonic = now_ns, monotonic
        self._lock = RLock()
        self._buffer: list[Record] = []
        self._due = 0.0

    @classmethod
    def open(cls, folder: Path | None = None, *, spool_bytes: int | None = None) -> Self:
        """Open the spool of an agent's folder, by default that of the environment."""
        config = AgentConfig.of(Settings.from_environment())
        path = private_folder(folder or config.folder) / FILE
        return cls(Spool(path, max_bytes=spool_bytes or config.spool_bytes))

    def record(
        self,
        name: str,
        value: float | bool | str,  # noqa: FBT001 -- the sample's value
        *,
        ts: int | None = None,
        labels: Mapping[str, str] | None = None,
        unit: str = "",
        priority: Priority = Priority.metrics,
    ) -> None:
        """Take one sample, of now unless `ts` (nanoseconds since 1970) says.

        Raises `BadSample` and `BufferFull` before it is taken. A sample of the priority `safety` is on
        the disk when this returns, or `SpoolUnavailable` is raised; then it stays in the buffer.
        """
        time_ns = self._now_ns() if ts is None else ts
        made = records.record(name, value, ts=time_ns, labels=labels, unit=unit, priority=priority)
        with self._lock:
            now = self._monotonic()
            if len(self._buffer) >= MAX_BUFFERED:
                raise BufferFull(f"{MAX_BUFFERED} samples wait for the disk already")
            if not self._buffer:
                self._due = now + MAX_AGE
            self._buffer.append(made)
            if priority == Priority.safety:
                self.flush()
            elif now >= self._due or len(self._buffer) == BUFFER:
                self._due = now + MAX_AGE
                with suppress(SpoolUnavailable):  # tried again a second later
                    self.flush()

    def flush(self) -> None:
        """Put everything that was recorded on the disk. Raises `SpoolUnavailable`."""
        with self._lock:
            if self._buffer:
                self._spool.put(self._buffer)
                self._buffer = []

    def close(self) -> None:
        """Flush, and close the spool."""
        with self._lock:
            try:
                self.flush()
            finally:
                self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
