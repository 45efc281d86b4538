"""Lines, programs and the machine itself: what is a sample is taken, what is not is counted."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tensorguard.agent import Priority, Recorder
from tensorguard.agent.listener import MAX_SENDERS, Listener, SocketUnusable, bind
from tensorguard.agent.machine import Machine
from tensorguard.agent.notify import Notifier
from tensorguard.agent.recorder import MAX_BUFFERED, BufferFull
from tensorguard.agent.records import MAX_LINE, BadSample, parse_line, record
from tensorguard.agent.schema import SpoolUnavailable
from tensorguard.agent.spool import Spool
from tensorguard.settings import Settings

NOW = 1_900_000_000_000_000_000


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool.db", max_bytes=1 << 24) as made:
        yield made


def kept(spool: Spool) -> list[dict]:
    with spool.transaction() as db:
        rows = db.execute("SELECT body FROM sample ORDER BY priority, id").fetchall()
    return [json.loads(body) for (body,) in rows]


def test_a_line_is_a_sample_of_now_unless_it_says() -> None:
    one = parse_line(b'{"name":"a","value":1}', now_ns=NOW)
    assert (json.loads(one.body)["ts"], one.priority) == (NOW, Priority.metrics)
    two = parse_line(
        b'{"name":"a","value":true,"ts":"2030-01-01T00:00:00Z","priority":"safety","unit":"m",'
        b'"labels":{"x":"y"}}',
        now_ns=NOW,
    )
    read = json.loads(two.body)
    assert (read["ts"], read["labels"], read["unit"]) == (1893456000000000000, {"x": "y"}, "m")
    assert (read["value"], two.priority) == (True, Priority.safety)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"x", b"[]", b"{}", b'{"name":"a"}', b'{"name":"","value":1}', b"\xff\xfe"),
        *(b'{"name":"a","value":NaN}', b'{"name":"a","value":1e999}', b'{"name":"a","value":null}'),
        *(b'{"name":"a","value":1,"ts":"yesterday"}', b'{"name":"a","value":1,"ts":1e30}'),
        *(b'{"name":"a","value":1,"more":2}', b'{"name":"a","value":1,"priority":"urgent"}'),
        *(b'{"name":"a","value":1,"labels":{"x":1}}', b"[" * 10_000, b"x" * (MAX_LINE + 1)),
    ],
)
def test_a_line_that_is_no_sample_is_refused(line: bytes) -> None:
    with pytest.raises(BadSample):
        parse_line(line, now_ns=NOW)


def test_a_number_that_is_not_finite_is_no_sample() -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(BadSample):
            record("a", value, ts=1)


@contextmanager
def listening(
    spool: Spool, path: Path | None, stdin: int | None = None
) -> Iterator[tuple[Listener, threading.Event]]:
    stop = threading.Event()
    listener = Listener(spool, path=path, stdin=stdin, wake=lambda: None, now_ns=lambda: NOW)
    thread = threading.Thread(target=listener.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield listener, stop
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def talk(path: Path, data: bytes) -> dict:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(str(path))
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        return json.loads(peer.recv(1000))


def lines(count: int, first: int = 0) -> bytes:
    return b"".join(b'{"name":"a","value":%d}\n' % n for n in range(first, first + count))


def test_a_sender_is_answered_after_the_commit(spool: Spool, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(spool, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        answer = talk(path, lines(5000) + b"nonsense\n\n  \n" + b'{"name":"last","value":1}')
        assert answer == {"taken": 5001, "unreadable": 1}
        assert len(kept(spool)) == 5001
        assert spool.tallies()["unreadable"] == 1
    assert not path.exists()


def test_a_line_without_end_takes_no_memory_and_harms_no_other(
    spool: Spool, tmp_path: Path
) -> None:
    with listening(spool, tmp_path / "s"):
        endless = b"x" * (20 * MAX_LINE)
        answer = talk(tmp_path / "s", lines(1) + endless + b"\n" + lines(1))
        assert answer == {"taken": 2, "unreadable": 1}


def test_more_senders_than_places_are_served_in_turn(spool: Spool, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(spool, path):
        idle = [socket.socket(socket.AF_UNIX) for _ in range(MAX_SENDERS)]
        for peer in idle:
            peer.connect(str(path))
        late: list[dict] = []
        thread = threading.Thread(target=lambda: late.append(talk(path, lines(3))), daemon=True)
        thread.start()
        thread.join(0.7)
        assert thread.is_alive()
        for peer in idle:
            peer.close()
        thread.join(20)
        assert late == [{"taken": 3, "unreadable": 0}]


def test_standard_input_is_read_to_its_end(spool: Spool) -> None:
    read, write = os.pipe()
    with listening(spool, None, stdin=read) as (listener, _):
        with os.fdopen(write, "wb") as pipe:
            pipe.write(lines(10) + b'{"name":"a","value":10}')
        assert listener.stdin_ended.wait(20)
    os.close(read)
    assert [one["value"] for one in kept(spool)] == list(range(11))


def test_a_full_disk_stops_the_reading_and_not_the_agent(spool: Spool, tmp_path: Path) -> None:
    with spool.transaction() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count = {pages + 5}")
    path = tmp_path / "s"
    answers: list[dict] = []
    with listening(spool, path):
        writer = threading.Thread(
            target=lambda: answers.append(talk(path, lines(30_000))), daemon=True
        )
        writer.start()
        writer.join(1)
        assert writer.is_alive()
        with spool._lock:
            spool._db.execute("PRAGMA max_page_count = 1000000")
        writer.join(20)
    assert answers == [{"taken": 30_000, "unreadable": 0}]
    assert [one["value"] for one in kept(spool)] == list(range(30_000))


def test_the_socket_replaces_a_dead_one_and_nothing_else(tmp_path: Path) -> None:
    bind(tmp_path / "s").close()
    bind(tmp_path / "s").close()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SocketUnusable):
        bind(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(SocketUnusable):
        bind(tmp_path / ("x" * 120))


def test_a_program_records_into_the_spool(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    with Recorder.open(folder, spool_bytes=1 << 20) as recorder:
        recorder.record("arm.torque", 4.2, labels={"joint": "2"}, unit="N.m", ts=5)
        recorder.record("stop", True, priority=Priority.safety)
        with Spool(folder / "spool.db", max_bytes=1 << 20) as other:
            assert other.waiting() == 2  # an alarm does not wait, nor what came before it
        recorder.record("arm.torque", 4.3, ts=6)
        with pytest.raises(BadSample):
            recorder.record("arm.torque", float("nan"))
    with Spool(folder / "spool.db", max_bytes=1 << 20) as other:
        names = [one["name"] for one in kept(other)]
    assert names == ["stop", "arm.torque", "arm.torque"]


def test_a_recorder_flushes_what_is_old_and_keeps_what_the_disk_refuses(spool: Spool) -> None:
    now = [0.0]
    recorder = Recorder(spool, monotonic=lambda: now[0])
    recorder.record("a", 1.0)
    assert spool.waiting() == 0
    now[0] = 1.5
    recorder.record("a", 2.0)
    assert spool.waiting() == 2
    with spool.transaction() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    spool._db.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(MAX_BUFFERED):
        recorder.record("b" * 200, number)
    with pytest.raises(BufferFull):
        recorder.record("b" * 200, 1)
    with pytest.raises(SpoolUnavailable):
        recorder.flush()
    spool._db.execute("PRAGMA max_page_count = 1000000")
    recorder.flush()
    level = spool.levels()[Priority.metrics]
    assert level.recorded == level.waiting >= MAX_BUFFERED


STAT = "cpu  {} 0 0 {} 0 0 0 0 0 0\ncpu0 1 1 1 1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(STAT.format(100, 100))
    (tmp_path / "proc/loadavg").write_text("0.52 0.58 0.59 1/257 1234\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("48250\n")
    return tmp_path


def test_the_machine_is_measured_and_nothing_is_invented(root: Path, spool: Spool) -> None:
    machine = Machine(root, root)

    def read() -> dict[tuple[str, ...], float]:
        made = [json.loads(one.body) for one in machine.records(now_ns=NOW, spool=spool)]
        assert {one["ts"] for one in made} == {NOW}
        return {(one["name"], *one["labels"].values()): one["value"] for one in made}

    first = read()
    assert not [name for name, *_ in first if name == "system.cpu.utilization"]
    assert first["system.memory.usage", "used"] == 600 * 1024
    assert first["system.cpu.load_average.1m",] == 0.52
    assert first["hw.temperature", "0", "cpu-thermal"] == 48.25
    assert first["system.filesystem.usage", str(root), "free"] > 0
    assert first["tensorguard.agent.dropped", "metrics"] == 0
    (root / "proc/stat").write_text(STAT.format(130, 110))
    assert read()["system.cpu.utilization",] == 0.75
    for path in (
        "proc/stat",
        "proc/loadavg",
        "proc/meminfo",
        "sys/class/thermal/thermal_zone0/temp",
    ):
        (root / path).unlink()
    left = {name for name, *_ in read()}
    assert left == {
        "system.filesystem.usage",
        "tensorguard.agent.waiting",
        "tensorguard.agent.dropped",
    }
    (root / "proc/stat").write_text("cpu  x y\n")
    (root / "proc/meminfo").write_text("MemTotal\nMemAvailable: lots\n")
    (root / "proc/loadavg").write_text("high")
    assert {name for name, *_ in read()} == left


def test_a_service_manager_hears_the_states(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        notifier = Notifier.of(
            Settings(notify_socket=str(tmp_path / "n"), watchdog_usec=30_000_000)
        )
        notifier.tell("READY=1")
        assert manager.recv(100) == b"READY=1"
        assert notifier.watchdog_seconds == 30
    notifier.tell("STOPPING=1")  # it is gone: no error
    Notifier(None, None).tell("READY=1")
    quiet: Callable[[str], None] = Notifier("@no-such-name", None).tell
    quiet("READY=1")
