"""One worker and one waiting request, as the pool sees them, and the pool's bounds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tensorguard.serving.links import Body, Link
from tensorguard.serving.messages import Refused, Reply, Request
from tensorguard.serving.pool import EvaluationTimedOut
from tensorguard.wire.problems import RemoteProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound of the pool."""

    workers: int
    queue: int  # requests that wait for a worker
    seconds: float  # of one request
    memory_bytes: int  # address space of one worker
    pack_bytes: int
    reply_bytes: int
    cache_bytes: int  # evaluation-key frames that one worker keeps loaded
    shared_bytes: int = 0  # evaluation-key frames that the launcher keeps for all workers


@dataclass(eq=False)
class Worker:
    """One running worker."""

    link: Link
    started: float
    packs: set[str] = field(default_factory=set)  # loaded, or tried and refused
    warm: set[tuple[str, str]] = field(default_factory=set)  # evaluation keys that it was given
    broken: bool = False
    timed_out: bool = False

    async def ask(
        self, request: Request, *bodies: Body, seconds: float, limit: int
    ) -> tuple[Reply, bytes]:
        """Ask, and break the worker unless a whole reply came in time."""
        try:
            reply, body = await self.link.ask(request, *bodies, seconds=seconds, limit=limit)
        except EvaluationTimedOut:
            self.timed_out = True
            self.kill()
            raise
        except BaseException:  # a lost connection or a cancellation: its state is unknown now
            self.kill()
            raise
        if isinstance(reply, Refused):
            raise RemoteProblem(reply.problem)
        return reply, body

    def kill(self) -> None:
        """End it at once."""
        self.broken = True
        self.link.kill()


@dataclass(eq=False, slots=True)
class Waiter:
    """A request in the queue, and the seconds that its evaluation is likely to take."""

    worker: asyncio.Future[Worker]
    seconds: float
