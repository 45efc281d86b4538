"""A real platform on a real PostgreSQL, senders that retry, and both of them killed meanwhile.

A sample's value is its id, and no id is used twice. So what was acknowledged and is not there was
lost, and an id that is there twice was stored twice.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import psycopg
from cramjam import snappy

from support.telemetry import PROTOBUF, SECOND, attribute, write_request
from tensorguard.bench.postgresql import Server, server
from tensorguard.bench.processes import Child
from tensorguard.bench.telemetry_platform import Prepared, prepare
from tensorguard.wire.telemetry import RETRYABLE

DATABASE = "faults"
OPTIONS = ("fsync=off", "synchronous_commit=on", "shared_buffers=32MB", "max_connections=60")
ATTEMPT_SECONDS = 15.0
ROWS = 40
FORMS = ("json", "otlp", "remote-write")


@dataclass
class Site:
    """What can be killed."""

    database: Server
    platform: Child
    prepared: Prepared

    def kill_platform(self) -> None:
        """Kill the intake and start it again."""
        self.platform.kill()
        self.platform.start()

    def kill_database(self) -> None:
        """Kill PostgreSQL and start it again on what it left."""
        self.database.kill()
        self.database.start()

    def stored(self) -> list[int]:
        """Return the ids that are stored, with repetitions."""
        with self.database.connect(DATABASE) as connection:
            rows = connection.execute("SELECT value::bigint FROM sample ORDER BY 1").fetchall()
        return [value for (value,) in rows]

    def wait(self) -> None:
        """Return when the database answers."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(psycopg.OperationalError):
                self.database.connect(DATABASE).close()
                return
            time.sleep(0.05)
        raise AssertionError("the database did not come back")


@contextmanager
def site(folder: Path, **variables: str) -> Iterator[Site]:
    """Start a database that keeps its commits, and a platform on it."""
    with server(*OPTIONS) as database:
        with database.connect() as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        prepared = prepare(database.url(DATABASE), folder, **variables)
        platform = prepared.process()
        platform.start()
        try:
            yield Site(database, platform, prepared)
        finally:
            platform.stop()


@dataclass
class Tally:
    """What senders know: which ids exist, and which were acknowledged."""

    sent: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    retries: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Sender(threading.Thread):
    """Sends batch after batch, each until it is acknowledged; every tenth one ten times at once."""

    where: Site
    tally: Tally
    number: int
    halt: threading.Event
    ids: Iterator[int]
    began: int = field(default_factory=lambda: time.time_ns() - 3600 * SECOND)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.client = httpx.Client(trust_env=False, timeout=10)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Send until told to halt."""
        with self.client:
            self._send()

    def _send(self) -> None:
        for turn in itertools.count():
            if self.halt.is_set():
                return
            ids = list(itertools.islice(self.ids, ROWS))
            request = render(FORMS[turn % len(FORMS)], self.number, ids, self.began)
            with self.tally.lock:
                self.tally.sent |= set(ids)
            copies = 10 if turn % 10 == 9 else 1
            with ThreadPoolExecutor(copies) as pool:
                answers = list(pool.map(self._deliver, [request] * copies))
            if any(answers):
                with self.tally.lock:
                    self.tally.acknowledged |= set(ids)

    def _deliver(self, request: tuple[str, bytes, dict[str, str]]) -> bool:
        path, body, headers = request
        headers = {**headers, "authorization": f"Bearer {self.where.prepared.writer}"}
        url = f"http://127.0.0.1:{self.where.platform.port}{path}"
        deadline = time.monotonic() + ATTEMPT_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = self.client.post(url, content=body, headers=headers)
            except httpx.TransportError:
                pass
            else:
                if answer.is_success:
                    return True
                assert answer.status_code in RETRYABLE, answer.text
            with self.tally.lock:
                self.tally.retries += 1
            time.sleep(random.uniform(0.02, 0.1))
        return False


def render(form: str, sender: int, ids: list[int], began: int) -> tuple[str, bytes, dict[str, str]]:
    """Return path, body and headers of a batch; each id has a time of its own."""
    times = [began + number * 1_000_000 for number in ids]
    labels = {"sender": str(sender)}
    if form == "json":
        samples = [
            {"name": "id", "value": number, "ts": time, "labels": labels}
            for number, time in zip(ids, times, strict=True)
        ]
        headers = {"content-type": "application/json", "idempotency-key": f"{sender}-{ids[0]}"}
        return "/api/v1/telemetry/ingest", msgspec.json.encode({"samples": samples}), headers
    if form == "otlp":
        return "/v1/metrics", _otlp(sender, ids, times), {"content-type": PROTOBUF}
    pairs = [(time // 1_000_000, float(number)) for number, time in zip(ids, times, strict=True)]
    body = bytes(snappy.compress_raw(write_request({"__name__": "id", **labels}, pairs)))
    return "/api/v1/write", body, {"content-type": PROTOBUF, "content-encoding": "snappy"}


def _otlp(sender: int, ids: list[int], times: list[int]) -> bytes:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )

    request = ExportMetricsServiceRequest()
    gauge = request.resource_metrics.add().scope_metrics.add().metrics.add(name="id").gauge
    for number, time_ns in zip(ids, times, strict=True):
        point = gauge.data_points.add(time_unix_nano=time_ns, as_double=number)
        attribute(point.attributes, "sender", str(sender))
    return request.SerializeToString()


def send_while(where: Site, chaos: Callable[[], None], *, senders: int = 4) -> Tally:
    """Let senders send while `chaos` runs, then let them finish; return what they know."""
    tally, halt = Tally(), threading.Event()
    counter = itertools.count(1)
    lock = threading.Lock()

    def ids() -> Iterator[int]:
        while True:
            with lock:
                number = next(counter)
            yield number

    threads = [Sender(where, tally, number, halt, ids()) for number in range(senders)]
    for thread in threads:
        thread.start()
    try:
        chaos()
    finally:
        halt.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return tally


def check(where: Site, tally: Tally) -> None:
    """Assert that nothing acknowledged is lost and nothing is stored twice."""
    where.wait()
    found = where.stored()
    assert len(found) == len(set(found)), "stored twice"
    assert not tally.acknowledged - set(found), "acknowledged and lost"
    assert set(found) <= tally.sent
    assert tally.acknowledged
