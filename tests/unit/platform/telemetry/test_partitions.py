"""PostgreSQL keeps each day of samples in a partition of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from support.platform import Clock, Databases, Platform, running, settings_for
from support.telemetry import SECOND, at, device, samples, send, stored
from tensorguard.platform.db import revision

DAY = 86_400 * SECOND


@pytest.fixture
def platform(postgresql_databases: Databases, tmp_path: Path, clock: Clock) -> Iterator[Platform]:
    with (
        postgresql_databases.one("postgresql", migrated=True) as url,
        running(settings_for(url, tmp_path / "home"), clock) as started,
    ):
        yield started


def partitions(platform: Platform) -> list[str]:
    query = "SELECT relname FROM pg_class WHERE relname ~ '^sample_p[0-9]+$' ORDER BY 1"
    with platform.session() as session:
        return list(session.execute(text(query)).scalars())


def test_writers_that_open_the_same_days_at_once_do_not_collide(platform: Platform) -> None:
    now = at(platform.clock())
    writers = [device(platform, f"arm-{number}") for number in range(8)]

    def write(number: int) -> int:
        days = range(6) if number % 2 else range(5, -1, -1)
        rows = [{"name": "a", "value": 1, "ts": now - day * DAY} for day in days]
        answer = send(platform, writers[number], {"samples": rows})
        assert answer.status_code == 200, answer.text
        return answer.json()["accepted"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(8))) == [6] * 8
    assert partitions(platform) == [
        "sample_p20291227",
        "sample_p20291228",
        "sample_p20291229",
        "sample_p20291230",
        "sample_p20291231",
        "sample_p20300101",
    ]


def test_a_partition_that_was_dropped_comes_back_with_a_retry(platform: Platform) -> None:
    headers, now = device(platform), at(platform.clock())
    send(platform, headers, {"samples": samples(now)})
    with platform.session() as session:
        session.execute(text("DROP TABLE sample_p20300101"))
    batch = {"samples": samples(now, 5)}
    refused = send(platform, headers, batch)
    assert refused.status_code == 503
    assert refused.json()["code"] == "storage_busy"
    assert send(platform, headers, batch).json()["accepted"] == 5
    assert stored(platform)["sample"] == 5


def test_partitions_are_no_difference_to_the_models(platform: Platform) -> None:
    send(platform, device(platform), {"samples": samples(at(platform.clock()))})
    assert partitions(platform)
    assert revision.check(platform.state.engine) == revision.head()
