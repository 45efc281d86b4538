"""Samples are batched, sent until they are acknowledged, and counted: none is lost without a word.

    with TelemetryClient("https://platform.example", token_provider) as telemetry:
        telemetry.record("joint.angle", 0.31, labels={"joint": "0"}, unit="rad")

A batch keeps its Idempotency-Key over all attempts, so it is stored once however often it arrives.
Retried are lost connections and the answers 429, 502, 503 and 504, and nothing else; a refused
token is fetched anew once. What could not be delivered stays queued for the next `flush`.
"""

from __future__ import annotations

import random
import ssl
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import RLock
from typing import Final, Self

import httpx
import msgspec

from tensorguard import __version__
from tensorguard.errors import Unavailable
from tensorguard.sdk.transport import TokenProvider, checked_url
from tensorguard.wire.problems import Problem, RemoteProblem
from tensorguard.wire.telemetry import (
    IDEMPOTENCY_HEADER,
    INGEST_PATH,
    RETRYABLE,
    Answer,
    Batch,
    Sample,
)

BATCH_SIZE: Final = 500
MAX_QUEUED: Final = 100_000  # samples; more than that waits nowhere
ATTEMPTS: Final = 8
FIRST_WAIT, LONGEST_WAIT = 0.2, 30.0  # seconds
SECONDS: Final = 10.0  # for one request
MAX_ANSWER: Final = 1 << 20  # bytes; it lists at most a thousand rejections
UNAUTHENTICATED: Final = 401
BAD_BATCH: Final = frozenset({400, 413, 415, 422})  # this batch will never be taken


class NotDelivered(Unavailable):
    code = "telemetry_not_delivered"
    remedy = "The samples stay queued: call flush() again when the platform can be reached."


class QueueFull(Unavailable):
    code = "telemetry_queue_full"
    remedy = "Record less, or wait until the platform can be reached and call flush()."


@dataclass(frozen=True, slots=True)
class Counts:
    """Samples by what became of them; a retry counts none twice.

    `acknowledged` are stored, now or by an earlier attempt; `rejected` are those that the platform
    named as bad; `refused` belonged to a batch that it would not take at all.
    """

    recorded: int = 0
    sent: int = 0
    acknowledged: int = 0
    rejected: int = 0
    refused: int = 0


@dataclass(slots=True)
class _Pending:
    key: str
    samples: list[Sample]
    sent: bool = False


class TelemetryClient:
    """Sends samples to a platform. Safe to use from several threads."""

    def __init__(
        self,
        base_url: str,
        token_provider: TokenProvider,
        *,
        batch_size: int = BATCH_SIZE,
        max_queued: int = MAX_QUEUED,
        verify: ssl.SSLContext | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._token = token_provider
        self._batch_size = batch_size
        self._max_queued = max_queued
        self._sleep = sleep
        self._now_ns = now_ns
        self._lock = RLock()
        self._open: list[Sample] = []
        self._queue: deque[_Pending] = deque()
        self._counts = Counts()
        self._client = httpx.Client(
            base_url=checked_url(base_url),
            timeout=SECONDS,
            verify=verify if verify is not None else True,
            trust_env=False,
            transport=transport,
            headers={"User-Agent": f"tensorguard-sdk/{__version__}"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counts(self) -> Counts:
        """What became of the samples so far."""
        return self._counts

    @property
    def queued(self) -> int:
        """Samples that are neither acknowledged nor refused yet."""
        with self._lock:
            return len(self._open) + sum(len(pending.samples) for pending in self._queue)

    def record(
        self,
        name: str,
        value: float,
        *,
        ts: int | None = None,
        labels: Mapping[str, str] | None = None,
        unit: str = "",
    ) -> None:
        """Queue one sample, of now unless `ts` (nanoseconds since 1970) says; send full batches.

        Raises `QueueFull` before the sample is taken, or what `flush` raises after.
        """
        with self._lock:
            if self.queued >= self._max_queued:
                raise QueueFull(f"{self._max_queued} samples wait already")
            time_ns = self._now_ns() if ts is None else ts
            self._open.append(Sample(name, value, time_ns, dict(labels or {}), unit))
            self._count(recorded=1)
            if len(self._open) >= self._batch_size:
                self.flush()

    def flush(self) -> None:
        """Send all that is queued.

        Raises `NotDelivered` when the platform stays out of reach, and `RemoteProblem` when it
        refuses; a batch that it will never take is counted as refused and not sent again.
        """
        with self._lock:
            if self._open:
                self._queue.append(_Pending(uuid.uuid4().hex, self._open))
                self._open = []
            while self._queue:
                pending = self._queue[0]
                try:
                    answer = self._deliver(pending)
                except RemoteProblem as problem:
                    if problem.status in BAD_BATCH:
                        self._queue.popleft()
                        self._count(refused=len(pending.samples))
                    raise
                self._queue.popleft()
                self._count(
                    acknowledged=answer.accepted + answer.duplicates,
                    rejected=answer.rejected_total,
                )

    def close(self) -> None:
        """Send what is queued and close the connections."""
        try:
            self.flush()
        finally:
            self._client.close()

    def _count(self, **more: int) -> None:
        now = self._counts
        self._counts = replace(now, **{name: getattr(now, name) + n for name, n in more.items()})

    def _deliver(self, pending: _Pending) -> Answer:
        body = msgspec.json.encode(Batch(pending.samples))
        if not pending.sent:
            pending.sent = True
            self._count(sent=len(pending.samples))
        renewed = False
        reason: Exception | None = None
        for attempt in range(ATTEMPTS):
            try:
                return self._once(body, pending.key)
            except RemoteProblem as problem:
                reason, wait = problem, _backoff(attempt)
                if problem.status == UNAUTHENTICATED and not renewed:
                    renewed, wait = True, 0.0
                elif problem.status not in RETRYABLE:
                    raise
                elif problem.retry_after is not None:
                    wait = max(wait, min(float(problem.retry_after), LONGEST_WAIT))
            except httpx.TransportError as error:
                reason, wait = error, _backoff(attempt)
            if attempt < ATTEMPTS - 1:
                self._sleep(wait)
        raise NotDelivered(
            f"{self._client.base_url} took no batch in {ATTEMPTS} attempts"
        ) from reason

    def _once(self, body: bytes, key: str) -> Answer:
        return post_batch(self._client, self._token(), body, key=key)


def post_batch(
    client: httpx.Client, token: str, body: bytes, *, key: str, encoding: str | None = None
) -> Answer:
    """Send one batch once and return the answer. Raises `RemoteProblem` and httpx's errors."""
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        IDEMPOTENCY_HEADER: key,
    }
    if encoding is not None:
        headers["Content-Encoding"] = encoding
    with client.stream("POST", INGEST_PATH, content=body, headers=headers) as response:
        answer = bytearray()
        for chunk in response.iter_bytes():
            answer += chunk
            if len(answer) > MAX_ANSWER:
                break
    if response.is_success:
        try:
            return msgspec.json.decode(answer, type=Answer)
        except msgspec.DecodeError:
            pass  # not our platform, or a cut answer: described as unexpected below
    status = response.status_code if not response.is_success else httpx.codes.BAD_GATEWAY
    retry_after = response.headers.get("retry-after")
    raise RemoteProblem(
        Problem.from_response(bytes(answer), status=status, retry_after=retry_after)
    )


def _backoff(attempt: int) -> float:
    """Return a growing wait with jitter, so that a fleet does not come back at once."""
    spread: float = random.uniform(0.5, 1.0)  # noqa: S311 -- jitter, no secret
    return min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT) * spread
