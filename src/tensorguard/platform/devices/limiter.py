"""A client that keeps failing to enrol waits. This saves work; the token's 256 bits stop guessing.

Only failures count, so a whole fleet behind one address can enrol at once. The counters live in one
process and are bounded; the oldest make room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Lock
from typing import Final

from tensorguard.errors import TensorGuardError, Throttled

FREE: Final = 20  # failures within the window
WINDOW: Final = timedelta(minutes=1)
MAX_CLIENTS: Final = 10_000


class FailureLimiter:
    """Failures per client address within a window."""

    def __init__(self, *, free: int = FREE, window: timedelta = WINDOW) -> None:
        self._free, self._window = free, window
        self._lock = Lock()
        self._clients: OrderedDict[str, tuple[datetime, int]] = OrderedDict()

    @contextmanager
    def attempt(self, client: str, now: Callable[[], datetime]) -> Iterator[None]:
        """Let one attempt through and count it if it fails. Raises `Throttled`."""
        self._check(client, now())
        try:
            yield
        except TensorGuardError:
            self._count(client, now())
            raise

    def _check(self, client: str, moment: datetime) -> None:
        with self._lock:
            began, failures = self._clients.get(client, (moment, 0))
        left = began + self._window - moment
        if failures >= self._free and left > timedelta(0):
            raise Throttled("too many failed enrolments", retry_after=int(left.total_seconds()) + 1)

    def _count(self, client: str, moment: datetime) -> None:
        with self._lock:
            began, failures = self._clients.get(client, (moment, 0))
            if moment >= began + self._window:
                began, failures = moment, 0
            self._clients[client] = (began, failures + 1)
            self._clients.move_to_end(client)
            while len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
