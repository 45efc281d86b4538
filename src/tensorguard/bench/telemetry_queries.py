"""How long readers wait at ten million rows: one device's last hour, and the newest of 1,000 series.

Rows are laid down as a fleet leaves them: 1,000 series, a sample each second or so, newest last.
"""

from __future__ import annotations

import time
from typing import Final

import httpx
import numpy as np
from sqlalchemy.orm import sessionmaker

from tensorguard.bench.postgresql import Server
from tensorguard.bench.processes import Child
from tensorguard.bench.report import Ratio
from tensorguard.bench.telemetry_batches import MILLISECOND
from tensorguard.bench.telemetry_load import LoadFailed
from tensorguard.bench.telemetry_platform import Prepared
from tensorguard.platform.db.engine import engine_for
from tensorguard.platform.db.tables.people import Tenant
from tensorguard.platform.telemetry.cache import Identity, KnownDays
from tensorguard.platform.telemetry.points import Kind
from tensorguard.platform.telemetry.repository import SeriesRepository
from tensorguard.platform.telemetry.rows import Rows
from tensorguard.platform.telemetry.stores import SAMPLES, PostgresSamples

SERIES: Final = 1000
ROWS, QUICK_ROWS = 10_000_000, 1_000_000
ASKED, QUICK_ASKED = 400, 100
CHUNK: Final = 500_000
HOUR: Final = 3600 * 10**9
METRIC: Final = "query.value"
BARS: Final = {"range": 20.0, "latest": 50.0}  # ms, at the 99th percentile

Measured = dict[tuple[str, str, str, str], list[float]]


def measure(database: Server, prepared: Prepared, platform: Child, *, quick: bool) -> Measured:
    """Load the rows, then ask over HTTP; return milliseconds."""
    del database
    rows, case = (QUICK_ROWS, "query-1m") if quick else (ROWS, "query-10m")
    ids = _load(prepared, rows)
    found: Measured = {}
    headers = {"Authorization": f"Bearer {prepared.reader}"}
    random = np.random.default_rng(1)
    with httpx.Client(
        base_url=f"http://127.0.0.1:{platform.port}", headers=headers, trust_env=False
    ) as client:
        for turn in range(10 + (QUICK_ASKED if quick else ASKED)):
            chosen = int(random.choice(ids))
            spans = {"range": _range(client, chosen), "latest": _latest(client)}
            for variant, spent in spans.items():
                if turn >= 10:
                    found.setdefault((case, variant, "wall", "ms"), []).append(spent * 1000)
    for (name, variant, _, _), values in list(found.items()):
        found[name, variant, "p99", "ms"] = [float(np.percentile(values, 99))]
    return found


def _range(client: httpx.Client, series_id: int) -> float:
    now = time.time_ns()
    asked = {
        "series_id": str(series_id),
        "start": str(now - HOUR),
        "end": str(now),
        "agg": "mean",
        "step": str(HOUR // 100),
    }
    began = time.perf_counter()
    answer = client.get("/api/v1/telemetry/query", params=asked)
    spent = time.perf_counter() - began
    if answer.status_code != httpx.codes.OK or not answer.json()["series"][0]["points"]:
        raise LoadFailed(answer.text[:500])
    return spent


def _latest(client: httpx.Client) -> float:
    began, seen, cursor = time.perf_counter(), 0, ""
    while True:
        asked = {"name": METRIC, "limit": str(SERIES), **({"cursor": cursor} if cursor else {})}
        page = client.get("/api/v1/telemetry/latest", params=asked).json()
        seen += len(page["items"])
        cursor = page["next_cursor"] or ""
        if not cursor:
            break
    spent = time.perf_counter() - began
    if seen != SERIES:
        raise LoadFailed(f"{seen} newest values came, not {SERIES}")
    return spent


def _load(prepared: Prepared, rows: int) -> list[int]:
    engine = engine_for(prepared.database_url)
    store = PostgresSamples((KnownDays(),))
    try:
        sessions = sessionmaker(engine)
        with sessions.begin() as session:
            tenant = session.query(Tenant).filter_by(name="bench").one()
            identities = [
                Identity.of(METRIC, "rad", Kind.gauge, {"joint": str(number)})
                for number in range(SERIES)
            ]
            made = SeriesRepository(session, tenant_id=tenant.id).resolve(
                identities, now=tenant.created
            )
        ids = np.array(sorted(made.values()), dtype=np.int64)
        per = rows // SERIES
        end = time.time_ns()
        times = end - (per - np.arange(per, dtype=np.int64)) * 1000 * MILLISECOND
        step = max(CHUNK // SERIES, 1)
        for begin in range(0, per, step):
            part = times[begin : begin + step]
            whole = Rows(
                np.repeat(ids, len(part)),
                np.tile(part, SERIES),
                np.random.default_rng(begin).normal(size=len(part) * SERIES),
                np.zeros(len(part) * SERIES, dtype=np.int64),
            )
            with sessions.begin() as session:
                store.prepare(session, SAMPLES, whole.days())
                store.insert(session, whole, careful=False)
                store.advance(session, whole.newest())
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    finally:
        engine.dispose()
    return [int(one) for one in ids]


def ratios(found: Measured) -> list[Ratio]:
    """Compare the slowest percent with what is promised."""
    made = []
    for (case, variant, metric, _), values in found.items():
        if metric == "p99" and case.startswith("query-"):
            bar = BARS[variant]
            value = bar / values[0]
            made.append(Ratio(case, variant, f"{bar:.0f}-ms", "p99", value, 1.0, value >= 1))
    return made
