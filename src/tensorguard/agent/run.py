"""`tensorguard agent run`: sources, spool and uploader in one small process, until a signal comes.

A part that ends by an error ends the process with it, so that the service manager starts it anew;
what was spooled is still there.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from threading import Event, Thread
from types import FrameType
from typing import Final

from tensorguard.agent.config import AgentConfig, FolderLock
from tensorguard.agent.link import Opener, PlatformLink, require_enrolment
from tensorguard.agent.listener import Listener
from tensorguard.agent.machine import Machine
from tensorguard.agent.notify import Notifier
from tensorguard.agent.schema import SpoolUnavailable
from tensorguard.agent.spool import Spool
from tensorguard.agent.uploader import Pace, Uploader

TICK: Final = 0.25  # seconds between looks at the parts
JOIN_SECONDS: Final = 20.0  # a request that is under way may end; it is safe to cut it

log = logging.getLogger(__name__)


class Part(Thread):
    """One thread of the agent; what ended it is kept for the main thread."""

    def __init__(self, name: str, work: Callable[[Event], None], stop: Event) -> None:
        super().__init__(name=name, daemon=True)
        self._work, self._stop_all = work, stop
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Do the work; an error stops the agent."""
        try:
            self._work(self._stop_all)
        except BaseException as error:  # noqa: BLE001 -- raised again by the main thread
            self.failure = error
            self._stop_all.set()


def watch_machine(spool: Spool, config: AgentConfig) -> Callable[[Event], None]:
    """Return the work of the part that records the machine's own metrics."""
    machine = Machine(config.folder)

    def work(stop: Event) -> None:
        while True:
            with suppress(SpoolUnavailable):  # its own counts cannot be read now
                spool.put_or_drop(machine.records(now_ns=time.time_ns(), spool=spool))
            if stop.wait(config.system_seconds):
                return

    return work


def run(
    config: AgentConfig,
    *,
    stdin: int | None = None,
    use_socket: bool = True,
    use_machine: bool = True,
    drain: bool = False,
    notifier: Notifier | None = None,
    open_link: Opener | None = None,
) -> None:
    """Take samples and deliver them until SIGTERM or SIGINT.

    With `drain`, also end when standard input has ended and everything is settled. Raises
    `NotEnrolled`, `AgentRunning`, `SpoolUnusable` or whatever ended a part.
    """
    require_enrolment(config)
    notifier = notifier or Notifier(None, None)
    stop = Event()
    with ExitStack() as stack:
        stack.enter_context(FolderLock(config.folder))
        spool = stack.enter_context(config.open_spool())
        pace = Pace(config.batch_rows, config.interval)
        uploader = Uploader(spool, open_link or (lambda: PlatformLink.open(config)), pace)
        listener = Listener(
            spool,
            path=config.socket if use_socket else None,
            stdin=stdin,
            wake=uploader.wake.set,
        )
        parts = [Part("uploader", uploader.run, stop), Part("listener", listener.run, stop)]
        if use_machine:
            parts.append(Part("machine", watch_machine(spool, config), stop))
        _on_signals(stop, uploader.wake)
        for part in parts:
            part.start()
        notifier.tell("READY=1")
        log.info("the agent runs", extra={"folder": str(config.folder)})
        _watch(stop, notifier, (lambda: _drained(listener, spool)) if drain else None)
        notifier.tell("STOPPING=1")
        stop.set()
        uploader.wake.set()
        for part in parts:
            part.join(JOIN_SECONDS)
        failure = next((part.failure for part in parts if part.failure is not None), None)
        if failure is not None:
            raise failure
    log.info("the agent has ended")


def _on_signals(stop: Event, wake: Event) -> None:
    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()
        wake.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)


def _watch(stop: Event, notifier: Notifier, done: Callable[[], bool] | None) -> None:
    alive = 0.0
    while not stop.wait(TICK):
        now = time.monotonic()
        if notifier.watchdog_seconds and now - alive >= notifier.watchdog_seconds / 2:
            alive = now
            notifier.tell("WATCHDOG=1")
        if done is not None and done():
            return


def _drained(listener: Listener, spool: Spool) -> bool:
    return listener.stdin_ended.is_set() and spool.waiting() == 0
