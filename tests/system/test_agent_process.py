"""The agent as a robot runs it: small, thin, told about by systemd, and alone in its folder."""

from __future__ import annotations

import configparser
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agents import Site, say, site, until
from support.platform import Databases
from support.production import BIN, process_environment

MEGABYTE = 1_000_000
HEAVY = {"fastapi", "starlette", "sqlalchemy", "alembic", "tenseal", "numpy", "psycopg", "uvicorn"}
UNIT = Path(__file__).parents[2] / "packaging/systemd/tensorguard-agent.service"
pytestmark = pytest.mark.xdist_group("agent-process")


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, sqlite_databases: Databases
) -> Iterator[Site]:
    with (
        sqlite_databases.one("sqlite", migrated=True) as url,
        site(tmp_path_factory.mktemp("agents"), url) as running,
    ):
        yield running


def lines(series: str, count: int) -> list[dict]:
    began = time.time_ns() - count * 1_000_000
    return [
        {
            "name": series,
            "value": number,
            "ts": began + number * 1_000_000,
            "labels": {"joint": "2"},
        }
        for number in range(count)
    ]


@pytest.mark.invariant("TG-I63")
def test_an_agent_under_load_stays_under_80_megabytes(started: Site) -> None:
    agent = started.agent("small").start()
    sock = agent.folder / "agent.sock"
    assert stat.S_IMODE(sock.stat().st_mode) == 0o600
    started.wire.cut()  # so that all of it is held at once
    senders = [
        threading.Thread(target=say, args=(sock, lines(f"load{number}", 10_000)), daemon=True)
        for number in range(4)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(60)
    assert agent.waiting() >= 40_000
    started.wire.connect()
    until(lambda: agent.waiting() < 100, seconds=60)
    assert len(started.rows("load3")) == 10_000
    assert started.rows("system.memory.usage")
    assert started.rows("tensorguard.agent.waiting")
    assert agent.rss() < 80 * MEGABYTE
    maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert not [name for name in ("numpy", "tenseal", "sqlalchemy", "psycopg") if name in maps]
    second = subprocess.run(
        [f"{BIN}/tensorguard", "agent", "run"],
        env=process_environment(agent.variables),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (second.returncode, "works in" in second.stderr) == (1, True)
    status = agent.status()
    assert status["running"]
    assert status["delivery"] == "delivering"
    assert "running;" in agent.command("agent", "status")
    assert agent.stop() == 0
    assert not sock.exists()
    assert not agent.status()["running"]


def test_no_module_of_the_agent_loads_a_server() -> None:
    program = (
        "import sys, importlib, pkgutil, tensorguard.agent as agent\n"
        "for one in pkgutil.iter_modules(agent.__path__):\n"
        "    importlib.import_module(f'tensorguard.agent.{one.name}')\n"
        "import tensorguard.cli.agent, tensorguard.cli.submissions\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_pipe_is_delivered_and_the_agent_ends(started: Site) -> None:
    agent = started.agent("pipe", "--stdin", "--drain", "--no-socket", "--no-system")
    read, write = os.pipe()
    agent.start(stdin=read)
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        for line in lines("piped", 2500):
            pipe.write(json.dumps(line) + "\n")
        pipe.write("this is no sample\n")
        pipe.write('{"name": "piped.word", "value": "ready"}')  # no line end
    assert agent.process.wait(60) == 0
    assert len(started.rows("piped")) == 2500
    status = agent.status()
    assert (status["acknowledged"], status["unreadable"]) == (2501, 1)


def test_a_revoked_device_keeps_its_samples(started: Site) -> None:
    agent = started.agent("lost", "--no-system").start()
    say(agent.folder / "agent.sock", lines("before", 1))
    until(lambda: started.rows("before"))
    device = agent.status()["device_id"]
    agent.stop()
    words = ("--url", started.wire.url, "--token-file", str(started.token_file))
    agent.command("device", "revoke", device, *words)
    agent.start()
    say(agent.folder / "agent.sock", lines("after", 5))
    until(lambda: agent.status()["delivery"] != "delivering")
    assert (agent.waiting(), agent.status()["dead"]) == (5, 0)
    assert agent.stop() == 0


def test_systemd_hears_that_the_agent_is_ready_and_alive(started: Site, tmp_path: Path) -> None:
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        agent = started.agent(
            "unit",
            "--no-system",
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="1000000",
        ).start()
        while heard.count(b"WATCHDOG=1") < 2:
            heard.append(manager.recv(100))
        assert agent.stop() == 0
        while heard[-1] != b"STOPPING=1":
            heard.append(manager.recv(100))
    assert heard[0] == b"READY=1"


def test_an_agent_without_identity_or_token_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [f"{BIN}/tensorguard", "agent", "run", "--dir", str(tmp_path / "new")],
        env=process_environment({"TG_ENVIRONMENT": "development"}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr


def test_the_unit_is_what_the_wheel_ships_and_confines_the_agent() -> None:
    printed = subprocess.run(
        [f"{BIN}/tensorguard", "agent", "unit"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == UNIT.read_text()
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(printed)
    service = parser["Service"]
    assert service["Type"] == "notify"
    assert service["ExecStart"].split()[1:] == ["agent", "run"]
    assert service["NoNewPrivileges"] == service["PrivateTmp"] == service["ProtectHome"] == "yes"
    assert service["ProtectSystem"] == "strict"
