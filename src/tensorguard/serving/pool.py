"""What the gateway needs of whatever evaluates: processes of this machine, or of a Ray cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from tensorguard.errors import Unavailable

FetchKeys = Callable[[], Awaitable[bytes]]


class Death(StrEnum):
    """Why a worker ended that should not have."""

    crash = "crash"
    deadline = "deadline"


class QueueFull(Unavailable):
    code = "queue_full"
    remedy = "Try again after the time given in Retry-After; raise TG_MAX_WORKERS if it persists."


class EvaluationTimedOut(Unavailable):
    """The work took longer than its deadline. Trying again would take as long."""

    code = "evaluation_timeout"
    status = 504
    remedy = "Use a smaller model, or ask the operator to raise TG_MAX_WORKER_SECONDS."


class DeadlineMissed(Unavailable):
    """The caller's own deadline cannot be met. It is refused before any work is done."""

    code = "deadline_missed"
    status = 504
    remedy = "Allow more time in TG-Deadline, send fewer requests at once, or ask for more workers."


@dataclass(frozen=True, slots=True)
class Job:
    """One evaluation. `fetch_keys` reads the evaluation keys if the evaluator lacks them.

    `deadline`, in seconds of `time.perf_counter`, is when the caller has no more use of the answer.
    """

    pack_id: str
    tenant: str
    digest: str
    ciphertext: bytes
    fetch_keys: FetchKeys
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The result frame, the seconds spent waiting for a worker, and those spent evaluating."""

    ciphertext: bytes
    queue_seconds: float
    evaluate_seconds: float


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What `/ready` and `/metrics` tell."""

    wanted: int
    alive: int
    waiting: int


class Pool(Protocol):
    """Evaluates. Every method may raise `Unavailable`, or `RemoteProblem` for a refusal."""

    async def start(self) -> None:
        """Begin; returns when workers are ready. Raises `Unavailable` when none is."""
        ...

    async def stop(self) -> None:
        """End every worker."""
        ...

    async def load(self, pack_id: str, data: bytes) -> None:
        """Make a pack available in every worker, present and future."""
        ...

    async def drop(self, pack_id: str) -> None:
        """Forget a pack."""
        ...

    async def check_keys(self, pack_id: str, tenant: str, digest: str, frame: bytes) -> None:
        """Parse evaluation keys strictly for a pack."""
        ...

    async def evaluate(self, job: Job) -> Answer:
        """Evaluate one ciphertext."""
        ...

    def status(self) -> PoolStatus:
        """Return how the pool is."""
        ...
