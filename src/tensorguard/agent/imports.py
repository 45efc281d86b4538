"""`tensorguard agent import`: spool a recording, and deliver it unless an agent of this folder does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Final

import msgspec

from tensorguard.agent.config import AgentConfig, AgentRunning, FolderLock
from tensorguard.agent.importer import Report, Waiting, import_file
from tensorguard.agent.link import Opener, PlatformLink, require_enrolment
from tensorguard.agent.spool import Progress, Spool
from tensorguard.agent.uploader import Pace, Uploader

if TYPE_CHECKING:
    from collections.abc import Iterator

PAUSE: Final = 0.1  # seconds between looks at what still waits
JOIN_SECONDS: Final = 20.0


class Imported(msgspec.Struct, frozen=True):
    """What `tensorguard agent import --json` prints. `samples` were spooled, now or by an earlier run."""

    file: str
    messages: int
    samples: int
    skipped: int
    finished: bool
    spooled: int
    acknowledged: int
    refused: int
    dropped: int


def import_and_deliver(
    path: Path,
    config: AgentConfig,
    *,
    stop: Event,
    report: Report = lambda _: None,
    waiting: Callable[[int], None] = lambda _: None,
    deliver: bool = True,
    open_link: Opener | None = None,
) -> Imported:
    """Spool a file and, unless a running agent does that, deliver until nothing waits.

    `report` hears how far the file is, `waiting` how many samples still wait. The counts of the
    answer are those of the whole spool. Raises what `import_file` raises.
    """
    with ExitStack() as stack:
        spool = stack.enter_context(config.open_spool())
        own = False
        if deliver:
            opener = open_link or (lambda: PlatformLink.open(config))
            own = stack.enter_context(_delivering(config, spool, opener))
        progress = import_file(path, spool, Waiting(stop, deliver), report)
        while own and (left := spool.waiting()) and not stop.wait(PAUSE):
            waiting(left)
        return _outcome(path, spool, progress)


@contextmanager
def _delivering(config: AgentConfig, spool: Spool, open_link: Opener) -> Iterator[bool]:
    """Deliver in a thread within the block; yield False when an agent of this folder delivers."""
    try:
        lock = FolderLock(config.folder)
    except AgentRunning:
        yield False
        return
    with lock:
        require_enrolment(config)
        done = Event()
        uploader = Uploader(spool, open_link, Pace(config.batch_rows, PAUSE))
        thread = Thread(target=uploader.run, args=(done,), name="uploader", daemon=True)
        thread.start()
        try:
            yield True
        finally:
            done.set()
            uploader.wake.set()
            thread.join(JOIN_SECONDS)


def _outcome(path: Path, spool: Spool, progress: Progress) -> Imported:
    levels = spool.levels().values()
    return Imported(
        file=str(path),
        messages=progress.messages,
        samples=progress.samples,
        skipped=progress.skipped,
        finished=progress.finished,
        spooled=sum(level.waiting for level in levels),
        acknowledged=sum(level.acknowledged for level in levels),
        refused=sum(level.refused for level in levels),
        dropped=sum(level.dropped for level in levels),
    )
