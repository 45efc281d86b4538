"""Telemetry beside what others write: the same batches into the same table of the same database.

`copy` is the ceiling: all rows of a run in one binary COPY, one transaction, over one connection.
Everything else is HTTP, with 32 connections for `wide` and 16 for `tall`. `otlp`, `remote-write` and `json` go to a real platform,
which also checks who sends, keeps newest values, and stores every batch once; the peers do not.
PostgreSQL runs with fsync and synchronous_commit; client, server and database share the machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psycopg

from tensorguard.bench import telemetry_load as load
from tensorguard.bench import telemetry_queries as queries
from tensorguard.bench.postgresql import DURABLE, Server, server
from tensorguard.bench.processes import Child, child, cpu_seconds, free_port, rss_megabytes
from tensorguard.bench.report import Ratio, Report, Result, commit, machine, versions
from tensorguard.bench.telemetry_batches import TALL, WIDE, Filling, Generator, Shape
from tensorguard.bench.telemetry_platform import Prepared, prepare
from tensorguard.platform.telemetry.rows import Rows, copy_bytes

SEED: Final = 20260501
DATABASE: Final = "bench"
OPTIONS: Final = (
    *DURABLE,
    "shared_buffers=256MB",
    "max_wal_size=4GB",
    "checkpoint_timeout=1h",
    "max_connections=120",
)
MAX_RSS: Final = 150.0  # MB
SLOW: Final = frozenset({"orm"})  # gets a tenth of the batches
BARS: Final = {
    ("intake-wide", "otlp", "orm"): 20.0,
    ("intake-wide", "otlp", "copy"): 0.45,
    ("intake-tall", "otlp", "orm"): 8.0,
}
PAIRS: Final = (
    ("otlp", "orm"),
    ("otlp", "copy"),
    ("remote-write", "orm"),
    ("json", "orm"),
    ("otlp", "per-request"),
)
HOUR: Final = 3_600 * 10**9


@dataclass(frozen=True, slots=True)
class Variant:
    """Where a form of batches goes. Without a path it is COPY."""

    name: str
    path: str = ""
    render: Callable[[Generator, Filling], bytes] | None = None
    media: str = "application/json"
    encoding: str = ""


VARIANTS: Final = (
    Variant("copy"),
    Variant("otlp", "/v1/metrics", Generator.otlp, "application/x-protobuf"),
    Variant(
        "remote-write", "/api/v1/write", Generator.remote_write, "application/x-protobuf", "snappy"
    ),
    Variant("json", "/api/v1/telemetry/ingest", Generator.json),
    Variant("per-request", "/per-request", Generator.json),
    Variant("orm", "/orm", Generator.json),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What runs while measuring."""

    database: Server
    prepared: Prepared
    platform: Child
    peers: Child

    def target(self, variant: Variant) -> Child:
        """Return the process that serves a variant."""
        return self.peers if variant.name in {"orm", "per-request"} else self.platform


Measured = dict[tuple[str, str, str, str], list[float]]  # case, variant, metric, unit


def run(*, quick: bool, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Measure everything, interleaved."""
    rounds, batches = (2, 300) if quick else (5, 1500)
    found: Measured = {}
    with ExitStack() as ends:
        progress("Starting PostgreSQL, a platform and the peers")
        bench = _start(ends)
        generators = {
            shape: Generator(shape, SEED, time.time_ns() - HOUR * 20) for shape in (WIDE, TALL)
        }
        _warm(bench, generators)
        for turn in range(rounds):
            for shape, generator in generators.items():
                for variant in VARIANTS:
                    progress(f"Round {turn + 1} of {rounds}: {shape.case} {variant.name}")
                    few = batches // 2 if shape is TALL else batches
                    count = max(few // 8, 32) if variant.name in SLOW else few
                    _measure(bench, variant, generator, count, found)
        progress("Loading samples for the queries")
        found |= queries.measure(bench.database, bench.prepared, bench.platform, quick=quick)
    results = tuple(Result.of(*key, values) for key, values in found.items())
    return Report(
        bench="telemetry",
        commit=commit(),
        machine=machine(),
        versions=versions("psycopg", "msgspec", "fastapi", "sqlalchemy", "protobuf"),
        seed=SEED,
        results=results,
        ratios=(*_ratios(found), *queries.ratios(found)),
        missing=(),
    )


def _start(ends: ExitStack) -> Bench:
    folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="tg-bench-")))
    database = ends.enter_context(server(*OPTIONS))
    with database.connect() as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")
    prepared = prepare(database.url(DATABASE), folder)
    platform = prepared.process()
    ends.callback(platform.stop)
    platform.start()
    port = free_port()
    peer = ["-m", "tensorguard.bench.telemetry_peers", prepared.database_url, str(port)]
    peers = ends.enter_context(child(peer, port, prepared.environment, folder / "peers.log"))
    return Bench(database, prepared, platform, peers)


def _requests(
    bench: Bench, variant: Variant, generator: Generator, fillings: Iterable[Filling]
) -> list[bytes]:
    assert variant.render is not None  # noqa: S101 - it is no COPY
    headers = {
        "Content-Type": variant.media,
        "Authorization": f"Bearer {bench.prepared.writer}",
    }
    if variant.encoding:
        headers["Content-Encoding"] = variant.encoding
    return [
        load.request(variant.path, variant.render(generator, filling), headers)
        for filling in fillings
    ]


def _warm(bench: Bench, generators: dict[Shape, Generator]) -> None:
    for generator in generators.values():
        for variant in VARIANTS[1:]:
            requests = _requests(bench, variant, generator, generator.fill(32))
            load.send(bench.target(variant).port, requests, connections=generator.shape.connections)
    _empty(bench)


def _empty(bench: Bench) -> None:
    with bench.database.connect(DATABASE) as connection:
        connection.execute("TRUNCATE sample, ingest_batch")
        connection.execute("CHECKPOINT")


def _measure(
    bench: Bench, variant: Variant, generator: Generator, count: int, found: Measured
) -> None:
    fillings = list(generator.fill(count))
    rows = count * generator.shape.rows
    _empty(bench)
    if variant.render is None:
        cpu = _cpu(bench, None)
        latencies, seconds = [], _copy(bench, generator, fillings)
    else:
        requests = _requests(bench, variant, generator, fillings)
        target = bench.target(variant)
        cpu = _cpu(bench, target)
        outcome = load.send(target.port, requests, connections=generator.shape.connections)
        latencies, seconds = outcome.latencies, outcome.seconds
    after = _cpu(bench, None if variant.render is None else bench.target(variant))
    _check_stored(bench, rows)

    def note(metric: str, unit: str, value: float) -> None:
        found.setdefault((generator.shape.case, variant.name, metric, unit), []).append(value)

    note("rows", "rows/s", rows / seconds)
    if latencies:
        note("p50", "ms", float(np.percentile(latencies, 50)) * 1000)
        note("p99", "ms", float(np.percentile(latencies, 99)) * 1000)
        note("rss", "MB", rss_megabytes(bench.target(variant).pid))
    for part in cpu:
        note(f"cpu-{part}", "us/row", (after[part] - cpu[part]) / rows * 1e6)
    note("size", "bytes/row", _size(bench) / rows)


def _cpu(bench: Bench, target: Child | None) -> dict[str, float]:
    spent = {
        "client": time.process_time(),
        "postgresql": cpu_seconds(bench.database.pid, children=True),
    }
    if target is not None:
        spent["server"] = cpu_seconds(target.pid)
    return spent


def _copy(bench: Bench, generator: Generator, fillings: Sequence[Filling]) -> float:
    streams = []
    for place, filling in enumerate(fillings):
        series, times, values = generator.rows(filling)
        body = copy_bytes(Rows(series, times, values, series))
        begin = 0 if place == 0 else 19  # one header, and one trailer at the end
        streams.append(body[begin:] if place == len(fillings) - 1 else body[begin:-2])
    with psycopg.connect(bench.database.target(DATABASE)) as connection:
        began = time.perf_counter()
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY sample FROM STDIN (FORMAT BINARY)") as copy,
        ):
            for stream in streams:
                copy.write(stream)
        connection.commit()
        return time.perf_counter() - began


def _check_stored(bench: Bench, rows: int) -> None:
    with bench.database.connect(DATABASE) as connection:
        found = connection.execute("SELECT count(*) FROM sample").fetchone()
    if found != (rows,):
        raise load.LoadFailed(f"{rows} rows were sent and {found} are stored")


def _size(bench: Bench) -> float:
    with bench.database.connect(DATABASE) as connection:
        found = connection.execute(
            "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits "
            "WHERE inhparent = 'sample'::regclass"
        ).fetchone()
    return float(found[0]) if found else 0.0


def _ratios(found: Measured) -> list[Ratio]:
    made: list[Ratio] = []
    for shape in (WIDE, TALL):
        speed = {
            variant: float(np.median(values))
            for (case, variant, metric, _), values in found.items()
            if case == shape.case and metric == "rows"
        }
        for variant, against in PAIRS:
            value, bar = speed[variant] / speed[against], BARS.get((shape.case, variant, against))
            holds = None if bar is None else value >= bar
            made.append(Ratio(shape.case, variant, against, "rows", value, bar, holds))
        most = max(
            max(values)
            for (case, variant, metric, _), values in found.items()
            if case == shape.case
            and metric == "rss"
            and variant in {"otlp", "remote-write", "json"}
        )
        headroom = MAX_RSS / most
        made.append(Ratio(shape.case, "otlp", "150-MB", "rss", headroom, 1.0, headroom >= 1))
    return made
