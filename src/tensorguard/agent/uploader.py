"""Batches go out in order of importance until the platform answers for every one of their samples.

A batch is on the disk with its key before it is first sent. It is forgotten when the answer accounts
for all of its samples; a batch that the platform will never take is split until the sample at
fault stands alone, and that one goes to the dead letters. Everything else is tried again, later.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from threading import Event
from typing import Final

from tensorguard.agent.link import Link, Opener
from tensorguard.agent.schema import SpoolUnavailable
from tensorguard.agent.spool import Batch, Spool
from tensorguard.errors import TensorGuardError, Unavailable
from tensorguard.wire.problems import RemoteProblem
from tensorguard.wire.telemetry import Answer

FOR_GOOD: Final = frozenset({400, 413, 415, 422})  # this batch will never be taken as it is
FIRST_WAIT, LONGEST_WAIT = 0.25, 60.0  # seconds
BATCH_BYTES: Final = 1 << 20  # a sixteenth of what a platform takes by default
MAX_REASON: Final = 500  # characters

log = logging.getLogger(__name__)


class AnswerIncomplete(Unavailable):
    code = "answer_incomplete"
    remedy = "Check the platform's version; the agent keeps the batch and tries again."


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is sent at a time, and how often."""

    rows: int
    interval: float
    max_bytes: int = BATCH_BYTES
    longest_wait: float = LONGEST_WAIT


class Uploader:
    """Delivers what is in a spool."""

    def __init__(
        self, spool: Spool, open_link: Opener, pace: Pace, *, chance: random.Random | None = None
    ) -> None:
        self._spool = spool
        self._open_link = open_link
        self._pace = pace
        self._chance = chance or random.Random()  # noqa: S311 -- jitter, no secret
        self._link: Link | None = None
        self._failures = 0
        self._state = ""
        self.wake = Event()

    def run(self, stop: Event) -> None:
        """Deliver until `stop`."""
        try:
            while not stop.is_set():
                wait = self.step()
                if wait and self._failures:
                    stop.wait(wait)
                elif wait:
                    self.wake.wait(wait)
                    self.wake.clear()
        finally:
            if self._link is not None:
                self._link.close()

    def step(self) -> float:
        """Send one batch, once; return the seconds to wait before the next."""
        batch: Batch | None = None
        try:
            batch = self._spool.next_batch(rows=self._pace.rows, max_bytes=self._pace.max_bytes)
            if batch is None:
                return self._pace.interval
            if self._link is None:
                self._link = self._open_link()
            self._settle(batch, self._link.send(batch))
        except RemoteProblem as problem:
            if batch is not None and problem.status in FOR_GOOD and self._link is not None:
                return self._refused(batch, problem)
            return self._failed(problem, problem.retry_after)
        except TensorGuardError as error:
            return self._failed(error, None)
        self._failures = 0
        self._say("delivering")
        return 0.0 if len(batch.bodies) >= self._pace.rows else self._pace.interval

    def _settle(self, batch: Batch, answer: Answer) -> None:
        refused = {
            rejection.index: ("rejected", rejection.reason[:MAX_REASON])
            for rejection in answer.rejected
            if 0 <= rejection.index < len(batch.bodies)
        }
        told = answer.accepted + answer.duplicates + len(refused)
        if told != len(batch.bodies) or answer.rejected_total != len(refused):
            raise AnswerIncomplete(
                f"the platform answered for {told} of {len(batch.bodies)} samples"
            )
        self._spool.settle(batch, refused)

    def _refused(self, batch: Batch, problem: RemoteProblem) -> float:
        log.warning(
            "the platform refuses a batch",
            extra={"code": problem.code, "status": problem.status, "samples": len(batch.bodies)},
        )
        try:
            if len(batch.bodies) > 1:
                self._spool.split(batch)
            else:
                self._spool.settle(batch, {0: (problem.code, str(problem)[:MAX_REASON])})
        except SpoolUnavailable as error:
            return self._failed(error, None)
        self._failures = 0
        return 0.0

    def _failed(self, error: TensorGuardError, retry_after: int | None) -> float:
        wait = min(FIRST_WAIT * 2.0 ** min(self._failures, 16), self._pace.longest_wait)
        self._failures += 1
        self._say(f"{error.code}: {error}"[:MAX_REASON])
        asked = float(retry_after or 0)
        return (
            max(asked, wait) * self._chance.uniform(1.0, 1.25)
            if asked >= wait
            else (wait * self._chance.uniform(0.5, 1.0))
        )

    def _say(self, state: str) -> None:
        if state == self._state:
            return
        self._state = state
        log.info("delivery changed", extra={"state": state})
        try:
            self._spool.note("delivery", state)
        except SpoolUnavailable:
            self._state = ""  # said again when the disk takes it
