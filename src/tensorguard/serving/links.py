"""What the pool needs of a place where workers run: start one, talk to it, end it.

A worker is always the same process (`tensorguard.serving.worker`), capped by its own kernel; only the
way to it differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tensorguard.serving.messages import Reply, Request, Start


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes on their way to a worker: themselves, or a launcher's reference to them."""

    size: int
    content: Any

    @classmethod
    def of(cls, data: bytes) -> Body:
        """Return `data` as a body of its own."""
        return cls(len(data), data)


class Link(Protocol):
    """One running worker. Nothing but a whole reply says that it is still of use."""

    @property
    def name(self) -> str:
        """What the log calls it: a process id, and where that is."""
        ...

    @property
    def gone(self) -> bool:
        """Whether it is already known that the worker ended."""
        ...

    async def ask(
        self, request: Request, *bodies: Body, seconds: float, limit: int
    ) -> tuple[Reply, bytes]:
        """Ask. Raises `EvaluationTimedOut` after `seconds`, and `WorkerGone`."""
        ...

    def kill(self) -> None:
        """End the worker at once. It cannot refuse."""
        ...

    async def wait(self) -> str:
        """Return how the worker ended, once it has."""
        ...

    async def end(self) -> None:
        """Let the worker go, and return once it has ended."""
        ...


class Launcher(Protocol):
    """Starts workers in one kind of place."""

    async def open(self) -> None:
        """Reach the place. Raises `Unavailable`."""
        ...

    async def close(self) -> None:
        """Leave it; no worker is left."""
        ...

    async def launch(self, start: Start) -> Link:
        """Start a worker. Raises `WorkerGone` when none comes up."""
        ...

    async def share(self, data: bytes) -> Body:
        """Put bytes where every worker can fetch them, for as long as the body is held."""
        ...
