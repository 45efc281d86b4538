"""From many requests to one writer: a bounded queue, group commit, answers after the commit.

What is admitted is bounded by bytes and by requests, before a body is read; beyond that the caller
gets 503 and tries again. One thread stores everything that waits in one transaction. A group that
the database refuses is split until the batch that it refuses stands alone; that one is taken apart
by itself, its neighbours are stored.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from prometheus_client import CollectorRegistry, Gauge, Histogram
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from tensorguard.errors import TensorGuardError, Unavailable
from tensorguard.platform.telemetry.group import (
    NOBODY,
    Batch,
    GroupWriter,
    NoLongerAllowed,
    Outcome,
)
from tensorguard.platform.telemetry.points import Letter
from tensorguard.platform.telemetry.repository import BatchRepository
from tensorguard.platform.telemetry.stores import Overlap
from tensorguard.wire.telemetry import MAX_LISTED, Answer, Rejection

log = logging.getLogger(__name__)

MAX_GROUP_ROWS: Final = 20_000
MAX_GROUP: Final = 512  # batches
STOP_SECONDS: Final = 30.0
REFUSED_BY_DATABASE: Final = "the database does not take it"

OUTAGES = (OperationalError, InterfaceError, PoolTimeout, psycopg.OperationalError, Unavailable)


class IntakeFull(Unavailable):
    code = "intake_full"
    remedy = "Send the same batch again, with the same key, after the time given in Retry-After."


class Stopping(Unavailable):
    code = "intake_stopping"
    remedy = "Send the same batch again, with the same key: another process will take it."


class Admission:
    """Counts the bytes and requests that are in memory. Used by the event loop alone."""

    def __init__(self, *, max_bytes: int, max_requests: int) -> None:
        self._max_bytes = max_bytes
        self._max_requests = max_requests
        self.bytes = 0
        self.requests = 0

    @contextmanager
    def admit(self, size: int) -> Iterator[Ticket]:
        """Admit a request of `size` bytes while the block runs. Raises `IntakeFull`."""
        if self.requests >= self._max_requests:
            raise IntakeFull("too many batches wait to be stored", retry_after=1)
        ticket = Ticket(self)
        ticket.grow(size)
        self.requests += 1
        try:
            yield ticket
        finally:
            self.requests -= 1
            self.bytes -= ticket.size

    def add(self, size: int) -> None:
        """Count more bytes. Raises `IntakeFull`; a single request always finds room."""
        if self.bytes and self.bytes + size > self._max_bytes:
            raise IntakeFull("too many bytes wait to be stored", retry_after=1)
        self.bytes += size


@dataclass(slots=True)
class Ticket:
    """What one admitted request holds."""

    admission: Admission
    size: int = 0

    def grow(self, size: int) -> None:
        """Hold more bytes, or fewer. Raises `IntakeFull`."""
        self.admission.add(size)
        self.size += size


@dataclass(frozen=True, slots=True)
class _Waiting:
    batch: Batch
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Answer]


class Intake:
    """The writer thread and the queue in front of it."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        writer: GroupWriter,
        registry: CollectorRegistry,
        *,
        now: Callable[[], datetime],
        counted: Callable[[Answer], None],
    ) -> None:
        self._sessions = sessions
        self.writer = writer
        self._now = now
        self._counted = counted
        self._waiting: deque[_Waiting] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._groups = Histogram(
            "tensorguard_telemetry_group_batches",
            "Batches stored in one transaction.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=registry,
        )
        self._depth = Gauge(
            "tensorguard_telemetry_waiting_batches",
            "Batches that wait for the writer.",
            registry=registry,
        )
        self._depth.set_function(lambda: len(self._waiting))

    async def store(self, batch: Batch) -> Answer:
        """Return the answer of a batch once it is committed. Raises what refused it."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(batch, loop, loop.create_future())
        with self._wake:
            if self._stopping:
                raise Stopping("this process is stopping", retry_after=1)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="telemetry-writer", daemon=True
                )
                self._thread.start()
            self._waiting.append(waiting)
            self._wake.notify()
        return await waiting.future

    def stop(self) -> None:
        """Store what waits, then end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            thread = self._thread
        if thread is not None:
            thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._stopping:
                    self._wake.wait()
                if not self._waiting:
                    return
                group = self._take()
            self._groups.observe(len(group))
            _settle(group, self.write([waiting.batch for waiting in group]))

    def _take(self) -> list[_Waiting]:
        group, rows = [self._waiting.popleft()], 0
        rows += group[0].batch.points.good
        while self._waiting and len(group) < MAX_GROUP:
            rows += self._waiting[0].batch.points.good
            if rows > MAX_GROUP_ROWS:
                break
            group.append(self._waiting.popleft())
        return group

    def write(self, batches: Sequence[Batch]) -> list[Outcome | Exception]:
        """Store batches; return an outcome for each, and never raise for what the database does."""
        try:
            outcomes = self._write(batches)
        except OUTAGES as outage:  # nothing of it is stored; a retry is right
            log.warning("a group was not stored", extra={"kind": type(outage).__name__})
            return [outage] * len(batches)
        except (SQLAlchemyError, psycopg.Error, TensorGuardError, ValueError) as error:
            return self._split(batches, error)
        for outcome in outcomes:
            if isinstance(outcome, Answer):
                self._counted(outcome)
        return list(outcomes)

    def _write(self, batches: Sequence[Batch]) -> list[Outcome]:
        now, careful, refused = self._now(), False, NOBODY
        while True:  # each turn knows something more
            try:
                with self._sessions.begin() as session:
                    return self.writer.write(
                        session, batches, now, careful=careful, refused=refused
                    )
            except Overlap:
                careful = True
            except NoLongerAllowed as found:
                refused = {**refused, **found.refused}

    def _split(self, batches: Sequence[Batch], error: Exception) -> list[Outcome | Exception]:
        if len(batches) > 1:
            middle = len(batches) // 2
            return [*self.write(batches[:middle]), *self.write(batches[middle:])]
        if isinstance(error, TensorGuardError):
            return [error]
        log.error("a batch was refused by the database", exc_info=error)
        try:
            return [self._bury(batches[0])]
        except (SQLAlchemyError, psycopg.Error) as again:
            return [again]

    def _bury(self, batch: Batch) -> Answer:
        """Keep a batch that cannot be stored as one letter, and answer that all was refused."""
        total = batch.points.good + batch.points.rejected
        listed = [Rejection(i, REFUSED_BY_DATABASE) for i in range(min(total, MAX_LISTED))]
        answer = Answer(0, 0, listed, total)
        now = self._now()
        with self._sessions.begin() as session:
            repository = BatchRepository(session, tenant_id=batch.sender.tenant_id)
            letter = Letter(REFUSED_BY_DATABASE, batch.body)
            repository.keep(batch.sender, batch.media, [letter], now=now)
            repository.add(
                principal=batch.sender.actor,
                key=batch.key.key,
                body=batch.key.body,
                answer=answer,
                now=now,
            )
        self._counted(answer)
        return answer


def _settle(group: Sequence[_Waiting], outcomes: Sequence[Outcome | Exception]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Waiting, Outcome | Exception]]] = {}
    for waiting, outcome in zip(group, outcomes, strict=True):
        by_loop.setdefault(waiting.loop, []).append((waiting, outcome))
    for loop, pairs in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, pairs)


def _resolve(pairs: Sequence[tuple[_Waiting, Outcome | Exception]]) -> None:
    for waiting, outcome in pairs:
        if waiting.future.done():  # the caller has gone
            continue
        if isinstance(outcome, Exception):
            waiting.future.set_exception(outcome)
        else:
            waiting.future.set_result(outcome)
