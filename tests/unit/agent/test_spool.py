"""What the spool took is delivered once or counted, whatever is killed, full or refused."""

from __future__ import annotations

import json
import random
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tensorguard.agent import dead
from tensorguard.agent.config import AgentConfig, AgentRunning, FolderLock
from tensorguard.agent.records import Priority, Record, record
from tensorguard.agent.schema import SpoolUnavailable, SpoolUnusable
from tensorguard.agent.spool import FILE, Batch, Progress, Spool
from tensorguard.crypto.files import UnsafeFile
from tensorguard.settings import Settings

MANY = 1 << 20


def samples(first: int, count: int, priority: Priority = Priority.metrics) -> list[Record]:
    return [record("angle", n, ts=n, priority=priority) for n in range(first, first + count)]


def values(batch: Batch | None) -> list[float]:
    assert batch is not None
    return [one["value"] for one in json.loads(batch.body)["samples"]]


def everything(spool: Spool) -> list[float]:
    found: list[float] = []
    while (batch := spool.next_batch(rows=100, max_bytes=MANY)) is not None:
        found += values(batch)
        spool.settle(batch, {})
    return found


def balanced(spool: Spool) -> None:
    levels = spool.levels().values()
    recorded = sum(level.recorded for level in levels) + spool.tallies()["replayed"]
    assert recorded == sum(
        level.waiting + level.acknowledged + level.refused + level.dropped for level in levels
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    with Spool(path, max_bytes=MANY) as made:
        yield made


def test_the_file_is_private_and_durable(spool: Spool, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with spool.transaction() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_safety_goes_before_events_before_metrics(spool: Spool) -> None:
    spool.put(samples(0, 3))
    spool.put(samples(10, 2, Priority.events))
    spool.put(samples(20, 1, Priority.safety))
    assert everything(spool) == [20, 10, 11, 0, 1, 2]
    balanced(spool)


@pytest.mark.invariant("TG-I65")
def test_a_batch_keeps_its_key_and_its_bytes_over_a_crash(spool: Spool, path: Path) -> None:
    spool.put(samples(0, 5))
    first = spool.next_batch(rows=3, max_bytes=MANY)
    spool.put(samples(5, 5))
    with Spool(path, max_bytes=MANY) as reopened:
        again = reopened.next_batch(rows=100, max_bytes=MANY)
    assert first == again
    assert first is not None
    assert first.body == again.body


def test_an_urgent_sample_overtakes_a_batch_that_waits(spool: Spool) -> None:
    spool.put(samples(0, 5))
    waiting = spool.next_batch(rows=5, max_bytes=MANY)
    spool.put(samples(99, 1, Priority.safety))
    urgent = spool.next_batch(rows=5, max_bytes=MANY)
    assert values(urgent) == [99]
    assert urgent is not None
    spool.settle(urgent, {})
    assert spool.next_batch(rows=5, max_bytes=MANY) == waiting


def test_a_batch_is_bounded_by_bytes_and_holds_at_least_one(spool: Spool) -> None:
    spool.put(samples(0, 10))
    batch = spool.next_batch(rows=10, max_bytes=1)
    assert values(batch) == [0]


@pytest.mark.invariant("TG-I61")
@pytest.mark.parametrize("seed", range(5))
def test_the_bound_drops_the_oldest_of_the_least_important_and_counts(
    path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    with Spool(path, max_bytes=20_000) as spool:
        put: dict[Priority, list[float]] = {priority: [] for priority in Priority}
        number = 0
        for _ in range(40):
            priority = chance.choice([*Priority])
            count = chance.randrange(1, 15)
            spool.put(samples(number, count, priority))
            put[priority] += range(number, number + count)
            number += count
            if chance.random() < 0.1:
                spool.next_batch(rows=5, max_bytes=MANY)
        levels = spool.levels()
        assert sum(level.bytes for level in levels.values()) <= 20_000
        assert sum(level.dropped for level in levels.values()) > 0
        balanced(spool)
        if levels[Priority.safety].dropped:
            assert levels[Priority.metrics].waiting <= 5  # only what is on its way
        kept = everything(spool)
        for priority in Priority:
            known = set(put[priority])
            mine = [value for value in kept if value in known]
            assert len(mine) == len(put[priority]) - levels[priority].dropped
            assert mine[-5:] == put[priority][-5:] or priority is Priority.metrics
        balanced(spool)


def test_what_is_on_its_way_is_never_dropped(path: Path) -> None:
    with Spool(path, max_bytes=20_000) as spool:
        spool.put(samples(0, 10))
        batch = spool.next_batch(rows=10, max_bytes=MANY)
        spool.put(samples(100, 500))
        assert spool.next_batch(rows=10, max_bytes=MANY) == batch
        assert spool.levels()[Priority.metrics].dropped > 0


def test_a_refused_sample_becomes_a_dead_letter_and_its_neighbours_do_not(spool: Spool) -> None:
    spool.put(samples(0, 3))
    batch = spool.next_batch(rows=3, max_bytes=MANY)
    assert batch is not None
    spool.settle(batch, {1: ("rejected", "too old")})
    spool.settle(batch, {1: ("rejected", "too old")})  # told twice, counted once
    (letter,) = dead.letters(spool)
    assert (json.loads(letter.body)["value"], letter.reason) == (1, "too old")
    level = spool.levels()[Priority.metrics]
    assert (level.acknowledged, level.refused, level.waiting) == (2, 1, 0)
    balanced(spool)


def test_a_replayed_letter_is_sent_again_and_a_dropped_one_is_counted(spool: Spool) -> None:
    spool.put(samples(0, 3, Priority.events))
    batch = spool.next_batch(rows=3, max_bytes=MANY)
    assert batch is not None
    spool.settle(batch, dict.fromkeys(range(3), ("rejected", "too old")))
    ids = [letter.id for letter in dead.letters(spool)]
    assert dead.replay(spool, ids[:2]) == 2
    with pytest.raises(dead.SubmissionUnknown):
        dead.drop(spool, [ids[2], ids[0]])
    assert [letter.id for letter in dead.letters(spool)] == ids[2:]  # all or nothing
    assert dead.letter(spool, ids[2]).priority is Priority.events
    assert dead.drop(spool, ids[2:]) == 1
    with pytest.raises(dead.SubmissionUnknown):
        dead.letter(spool, ids[2])
    assert everything(spool) == [0, 1]
    tallies = spool.tallies()
    assert (tallies["replayed"], tallies["discarded"], tallies["dead_rows"]) == (2, 1, 0)
    assert tallies["dead_bytes"] == 0
    balanced(spool)


def test_dead_letters_are_bounded_and_counted(path: Path) -> None:
    with Spool(path, max_bytes=40_000) as spool:
        for part in range(30):
            spool.put(samples(20 * part, 20))
            batch = spool.next_batch(rows=20, max_bytes=MANY)
            assert batch is not None
            refused = dict.fromkeys(range(len(batch.bodies)), ("rejected", "x"))
            spool.settle(batch, refused)
        tallies = spool.tallies()
        assert tallies["dead_bytes"] <= 10_000
        assert tallies["dead_lost"] > 0
        level = spool.levels()[Priority.metrics]
        assert tallies["dead_rows"] + tallies["dead_lost"] == level.refused
        assert tallies["dead_rows"] == len([*dead.letters(spool)])


def test_a_split_batch_is_the_same_samples_in_order(spool: Spool) -> None:
    spool.put(samples(0, 5))
    batch = spool.next_batch(rows=5, max_bytes=MANY)
    assert batch is not None
    spool.split(batch)
    spool.split(batch)  # it is no more
    assert everything(spool) == [0, 1, 2, 3, 4]


@pytest.mark.invariant("TG-I60")
def test_a_full_disk_keeps_what_was_kept_and_counts_what_it_must_drop(spool: Spool) -> None:
    spool.put(samples(0, 10))
    with spool.transaction() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count = {pages}")
    part = 0
    with suppress(SpoolUnavailable):
        for part in range(100):
            spool.put(samples(10 + 100 * part, 100))
    assert part < 99
    recorded = spool.levels()[Priority.metrics].recorded
    spool.put_or_drop(samples(50_000, 7) * 100)
    assert spool.levels()[Priority.metrics].recorded == recorded  # it could not be written
    spool._db.execute("PRAGMA max_page_count = 100000")
    spool.put([])
    level = spool.levels()[Priority.metrics]
    assert (level.recorded, level.dropped) == (recorded + 700, 700)
    assert len(everything(spool)) == recorded
    balanced(spool)


@pytest.mark.invariant("TG-I60")
def test_a_writer_that_is_killed_leaves_whole_commits(path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom tensorguard.agent.records import record\n"
        "from tensorguard.agent.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30)\n"
        "for part in range(100000):\n"
        "    spool.put([record('a', 10 * part + n, ts=n) for n in range(10)])\n"
        "    print(part, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    told = -1
    for line in writer.stdout:
        told = int(line)
        if told >= 30:
            writer.kill()
            break
    told = max([told, *(int(line) for line in writer.stdout.read().split())])
    writer.stdout.close()
    writer.wait()
    with Spool(path, max_bytes=1 << 30) as spool:
        kept = everything(spool)
    assert len(kept) % 10 == 0
    assert kept == list(range(len(kept)))
    assert len(kept) >= 10 * (told + 1)


def test_progress_is_committed_with_its_samples_or_not_at_all(spool: Spool) -> None:
    done = Progress("digest", "x.mcap", messages=5, samples=5, skipped=1)
    spool.put(samples(0, 5), progress=done)
    assert spool.progress("digest") == done
    assert spool.progress("another") is None
    with pytest.raises(SpoolUnusable):
        spool.put([Record(Priority.metrics, None)], progress=Progress("new", "y"))  # type: ignore[arg-type]
    assert spool.progress("new") is None


def test_a_spool_that_is_no_spool_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, and it is long enough to say so" * 100)
    with pytest.raises(SpoolUnusable):
        Spool(tmp_path / "text", max_bytes=MANY)
    (tmp_path / "link").symlink_to(tmp_path / "text")
    with pytest.raises(UnsafeFile):
        Spool(tmp_path / "link", max_bytes=MANY)
    later = sqlite3.connect(tmp_path / "later.db")
    later.execute("PRAGMA user_version = 9")
    later.close()
    with pytest.raises(SpoolUnusable, match="version 9"):
        Spool(tmp_path / "later.db", max_bytes=MANY)


def test_one_process_at_a_time_delivers(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    with FolderLock(folder), pytest.raises(AgentRunning):
        FolderLock(folder)
    FolderLock(folder).release()
    (tmp_path / "other").mkdir(mode=0o755)
    with pytest.raises(UnsafeFile):
        FolderLock(tmp_path / "other")


def test_the_configuration_comes_from_the_settings(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {"TG_HOME": str(tmp_path), "TG_AGENT_SPOOL_BYTES": "5000", "TG_AGENT_BATCH_ROWS": "9999"}
    )
    config = AgentConfig.of(settings)
    assert config.folder == tmp_path / "agent"
    assert config.socket == tmp_path / "agent" / "agent.sock"
    assert (config.spool_bytes, config.batch_rows) == (5000, 1000)
    with config.open_spool() as spool:
        assert spool.fill() == 0
    assert (config.folder / FILE).exists()
