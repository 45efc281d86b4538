"""A recorded file goes into the spool once: how far it got is committed together with its samples.

An import that was killed goes on where its last commit ended. It makes no room by dropping: while the
spool is half full it waits for the platform.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import IO, TYPE_CHECKING, Final

from tensorguard.agent.records import BadSample, Record, record
from tensorguard.agent.schema import SpoolUnavailable
from tensorguard.agent.spool import Progress, Spool
from tensorguard.crypto.files import UnsafeFile
from tensorguard.errors import ConfigurationError, NotFound, Unavailable
from tensorguard.wire.telemetry import MAX_NAME

if TYPE_CHECKING:
    from tensorguard.agent.mcap_messages import Numbers

COMMIT: Final = 1000  # messages or samples between two commits
EDGE: Final = 1 << 20  # bytes at each end of a file that make its digest, with its size
FULL: Final = 0.5  # of the spool's bound
PAUSE: Final = 0.1  # seconds

Report = Callable[[Progress], None]


class McapMissing(ConfigurationError):
    code = "mcap_missing"
    remedy = "Install the extra: pip install 'tensorguard[mcap]'."


class ImportStopped(Unavailable):
    code = "import_stopped"
    remedy = "Run the same command again: the import goes on where it stopped."


@dataclass(frozen=True, slots=True)
class Waiting:
    """Decides whether an import may go on; without an uploader a full spool never empties."""

    stop: Event
    delivers: bool

    def for_room(self, spool: Spool, bodies: Sequence[bytes]) -> None:
        """Return when the spool has room for `bodies`. Raises `ImportStopped`."""
        if spool.share(bodies) > FULL:
            raise ImportStopped("TG_AGENT_SPOOL_BYTES is too small for the messages of this file")
        while spool.fill(bodies) > FULL:
            if not self.delivers:
                raise ImportStopped("the spool is half full and nothing delivers it")
            self.pause()

    def pause(self) -> None:
        """Wait a moment. Raises `ImportStopped`."""
        if self.stop.wait(PAUSE):
            raise ImportStopped("the import was told to stop")


def import_file(
    path: Path, spool: Spool, waiting: Waiting, report: Report = lambda _: None
) -> Progress:
    """Spool every number of an MCAP file; return how many messages and samples that were.

    Raises `McapMissing`, `McapUnreadable` (what came before is spooled), `ImportStopped`.
    """
    with _open(path) as file:
        digest = _digest(file)
        progress = spool.progress(digest) or Progress(digest, str(path))
        if progress.finished:
            report(progress)
            return progress
        return _import(file, progress, spool, waiting, report)


def _import(
    file: IO[bytes], progress: Progress, spool: Spool, waiting: Waiting, report: Report
) -> Progress:
    pending: list[Record] = []
    saved = progress.messages
    try:
        for numbers in _messages(file, after=progress.messages):
            made, skipped = _records(numbers)
            pending += made
            progress = replace(
                progress,
                messages=progress.messages + 1,
                samples=progress.samples + len(made),
                skipped=progress.skipped + skipped,
            )
            if len(pending) >= COMMIT or progress.messages - saved >= COMMIT:
                _commit(spool, pending, progress, waiting)
                saved = progress.messages
                pending = []
                report(progress)
        progress = replace(progress, finished=True)
    finally:
        if progress.finished or saved != progress.messages:
            _commit(spool, pending, progress, waiting)
            report(progress)
    return progress


def _commit(spool: Spool, pending: list[Record], progress: Progress, waiting: Waiting) -> None:
    waiting.for_room(spool, [one.body for one in pending])
    while True:
        try:
            spool.put(pending, progress=progress)
        except SpoolUnavailable:
            waiting.pause()
        else:
            return


def _records(numbers: Numbers) -> tuple[list[Record], int]:
    made: list[Record] = []
    for name, value in numbers.leaves:
        if len(name) <= MAX_NAME:
            try:
                made.append(record(name, value, ts=numbers.log_time))
            except BadSample:
                continue
    return made, numbers.skipped + len(numbers.leaves) - len(made)


def _messages(file: IO[bytes], *, after: int) -> Iterator[Numbers]:
    try:
        from tensorguard.agent import mcap_messages
    except ModuleNotFoundError as error:
        raise McapMissing(f"{error.name} is not installed") from error
    return mcap_messages.read(file, after=after)


def _open(path: Path) -> IO[bytes]:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except OSError as error:
        raise UnsafeFile(f"{path} cannot be read: {error.strerror}") from error
    return file


def _digest(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256(str(size).encode())
    for start in (0, max(0, size - EDGE)):
        file.seek(start)
        digest.update(file.read(EDGE))
    file.seek(0)
    return digest.hexdigest()
