"""Whatever dies, what an agent took is stored once, or counted as dropped. `make soak` does it longer."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from support.agents import AgentProcess, Site, limit_files, say, site, until
from support.platform import Databases
from tensorguard.agent import Priority, Recorder

SOAK = os.environ.get("TG_TEST_SOAK") == "1"
PLATFORM_KILLS, CUTS, AGENT_KILLS = (20, 10, 10) if SOAK else (2, 2, 2)
PAUSE = 1.0 if SOAK else 0.4
PACE = 0.4 if SOAK else 0.1  # the backlog of a long run must not outlast its patience
SETTLE_SECONDS = 600.0 if SOAK else 120.0
LINES = 100
pytestmark = [pytest.mark.xdist_group("agent"), pytest.mark.timeout(1800 if SOAK else 300)]


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, postgresql_databases: Databases
) -> Iterator[Site]:
    with (
        postgresql_databases.one("postgresql", migrated=True) as url,
        site(tmp_path_factory.mktemp("faults"), url) as running,
    ):
        running.wire.repeat_every = 10
        running.wire.swallow_every = 7
        yield running


def lines(series: str, first: int, count: int, **more: str) -> list[dict]:
    """Return samples whose value is their id; no two have one time."""
    began = time.time_ns() - 3_600_000_000_000
    return [
        {"name": series, "value": number, "ts": began + number * 1000, **more}
        for number in range(first, first + count)
    ]


class Producer(threading.Thread):
    """Says what it has until told to stop, and remembers what was taken for sure."""

    def __init__(self, say_lines: Callable[[int], int]) -> None:
        super().__init__(daemon=True)
        self._say = say_lines
        self._stop_saying = threading.Event()
        self.said = 0
        self.taken: set[float] = set()

    def run(self) -> None:
        while not self._stop_saying.is_set():
            first = self.said
            self.said += LINES
            with suppress(OSError, ValueError):  # the agent was killed: unknown what it took
                if self._say(first) == LINES:
                    self.taken |= set(map(float, range(first, first + LINES)))
            time.sleep(PACE)

    def end(self) -> None:
        self._stop_saying.set()
        self.join(30)
        assert not self.is_alive()


def settled(agent: AgentProcess) -> dict:
    until(lambda: agent.waiting() == 0, seconds=SETTLE_SECONDS)
    return agent.status()


def assert_once(stored: list[float], producer: Producer) -> None:
    counted = Counter(stored)
    assert [number for number, count in counted.items() if count > 1] == []
    assert producer.taken - counted.keys() == set()
    assert max(counted) < producer.said


@pytest.mark.invariant("TG-I60")
def test_kills_and_cuts_lose_nothing_and_store_nothing_twice(started: Site) -> None:
    agent = started.agent("arm-1", "--no-system", TG_AGENT_BATCH_ROWS="200").start()
    sock = agent.folder / "agent.sock"
    recorder = Recorder.open(agent.folder)

    def record(first: int) -> int:
        for line in lines("program", first, LINES):
            recorder.record(line["name"], line["value"], ts=line["ts"], priority=Priority.events)
        recorder.flush()
        return LINES

    over_socket = Producer(lambda first: say(sock, lines("socket", first, LINES))["taken"])
    in_program = Producer(record)
    over_socket.start()
    in_program.start()
    for number in range(max(PLATFORM_KILLS, CUTS, AGENT_KILLS)):
        if number < PLATFORM_KILLS:
            started.platform.kill()
            started.platform.start()
        if number < CUTS:
            started.wire.cut()
            time.sleep(PAUSE)
            started.wire.connect()
        if number < AGENT_KILLS:
            agent.kill()
            agent.start()
        time.sleep(PAUSE)
    over_socket.end()
    in_program.end()
    recorder.close()
    found = settled(agent)
    socket_rows, program_rows = started.rows("socket"), started.rows("program")
    assert_once(socket_rows, over_socket)
    assert_once(program_rows, in_program)
    assert len(in_program.taken) == in_program.said
    assert len(over_socket.taken) > LINES
    assert len(socket_rows) + len(program_rows) == found["recorded"] == found["acknowledged"]
    assert (found["dropped"], found["dead"], found["unreadable"]) == (0, 0, 0)
    assert started.wire.disagreements == []
    assert started.wire.repeated > 0
    assert started.wire.swallowed > 0
    assert agent.stop() == 0


@pytest.mark.invariant("TG-I61")
def test_what_the_bound_drops_is_counted_and_is_the_oldest_of_the_least_important(
    started: Site,
) -> None:
    agent = started.agent("arm-2", "--no-system", TG_AGENT_SPOOL_BYTES="200000").start()
    sock = agent.folder / "agent.sock"
    say(sock, lines("first", 0, 1))
    until(lambda: started.rows("first"))
    started.wire.cut()
    taken = 0
    for part in range(5):
        taken += say(sock, lines("alarm", 10 * part, 10, priority="safety"))["taken"]
        taken += say(sock, lines("door", 10 * part, 10, priority="events"))["taken"]
        taken += say(sock, lines("noise", 1000 * part, 1000))["taken"]
    assert taken == 5 * 1020
    dropped = agent.status()["dropped"]
    assert dropped > 1000
    started.wire.connect()
    found = settled(agent)
    alarms, doors, noise = (started.rows(name) for name in ("alarm", "door", "noise"))
    assert sorted(alarms) == sorted(doors) == [float(number) for number in range(50)]
    assert found["dropped"] == dropped == 5000 - len(noise)
    assert found["priorities"]["metrics"]["dropped"] == dropped
    assert len(noise) == len(set(noise))
    assert max(noise) == 4999.0  # the newest are kept
    assert found["recorded"] == found["acknowledged"] + found["dropped"] == 5101
    assert agent.stop() == 0


@pytest.mark.invariant("TG-I60")
def test_a_full_disk_makes_writers_wait_and_loses_nothing(started: Site) -> None:
    agent = started.agent("arm-3", "--no-system").start()
    sock = agent.folder / "agent.sock"
    say(sock, lines("disk", 0, 10))
    until(lambda: len(started.rows("disk")) == 10)
    started.wire.cut()
    full = (agent.folder / "spool.db-wal").stat().st_size + 100_000
    before = limit_files(agent.process.pid, full)
    answers: list[dict] = []
    writer = threading.Thread(
        target=lambda: answers.append(say(sock, lines("disk", 10, 20_000))), daemon=True
    )
    writer.start()
    time.sleep(2)
    assert writer.is_alive()  # no answer: nothing is promised that is not on the disk
    assert agent.process.poll() is None
    limit_files(agent.process.pid, before[0])
    writer.join(30)
    assert answers == [{"taken": 20_000, "unreadable": 0}]
    started.wire.connect()
    found = settled(agent)
    assert sorted(started.rows("disk")) == [float(number) for number in range(20_010)]
    assert (found["recorded"], found["dropped"]) == (20_010, 0)
    assert agent.stop() == 0
