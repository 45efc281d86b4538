"""The half of a Ray worker that runs on its node: an actor that supervises one capped process.

Nothing of a caller is parsed here. The actor passes bytes to the same `tensorguard.serving.worker` that
a local pool has, under the same limits, and kills it at the deadline. It ends with its process.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import uvloop

from tensorguard import __version__
from tensorguard.serving.links import Body
from tensorguard.serving.local_workers import LocalLauncher
from tensorguard.serving.messages import Start, WorkerGone, encode, request_of
from tensorguard.serving.pool import EvaluationTimedOut

T = TypeVar("T")
REPLY, GONE, TIMED_OUT = "reply", "gone", "timed out"
Outcome = tuple[str, bytes, bytes]  # which of the three, then a reply's head and body


class WorkerActor:
    """One worker process, for as long as it lives. Its methods run in threads of Ray's."""

    def __init__(self, arguments: Sequence[str], start: bytes) -> None:
        self._loop = uvloop.new_event_loop()  # as the gateway; asyncio lacks a child watcher here
        threading.Thread(target=self._loop.run_forever, name="worker", daemon=True).start()
        begin = request_of(start)
        if not isinstance(begin, Start):
            raise WorkerGone("a worker begins with its limits")
        self._link = self._run(LocalLauncher(arguments).launch(begin))

    def ready(self) -> tuple[str, str]:
        """Return the version of the software on this node, and what the worker is called."""
        return __version__, f"{os.uname().nodename}:{self._link.name}"

    def ask(self, head: bytes, seconds: float, limit: int, *bodies: bytes) -> Outcome:
        """Pass a request on, and what came of it back."""
        request = request_of(head)
        asked = self._link.ask(request, *map(Body.of, bodies), seconds=seconds, limit=limit)
        try:
            reply, body = self._run(asked)
        except EvaluationTimedOut:
            self._link.kill()
            return TIMED_OUT, b"", b""
        except WorkerGone:
            self._link.kill()
            return GONE, b"", b""
        return REPLY, encode(reply), body

    def wait(self) -> str:
        """Return how the process ended, once it has."""
        return self._run(self._link.wait())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
