"""A recording of 100,000 messages arrives whole and once, though the network is cut twice meanwhile."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcap.writer import Writer

from support.agents import AgentProcess, Site, site, until
from support.platform import Databases
from support.production import BIN, process_environment

MESSAGES = 100_000
pytestmark = pytest.mark.xdist_group("agent")


def recording(path: Path, messages: int) -> None:
    """Write `messages` messages of one number each, 1 ms apart and up to now."""
    began = time.time_ns() - messages * 1_000_000
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("Angle", "jsonschema", b'{"type":"object"}')
        channel = writer.register_channel("/arm/joint", "json", schema)
        for number in range(messages):
            at = began + number * 1_000_000
            writer.add_message(channel, at, b'{"id":%d,"frame":"base"}' % number, at)
        writer.finish()


@pytest.fixture
def started(tmp_path: Path, postgresql_databases: Databases) -> Iterator[Site]:
    with (
        postgresql_databases.one("postgresql", migrated=True) as url,
        site(tmp_path, url) as running,
    ):
        yield running


def importing(agent: AgentProcess, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [f"{BIN}/tensorguard", "agent", "import", str(path), "--json"],
        env=process_environment(agent.variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.invariant("TG-I62")
def test_100_000_messages_with_two_cuts_are_100_000_rows(started: Site, tmp_path: Path) -> None:
    path = tmp_path / "arm.mcap"
    recording(path, MESSAGES)
    agent = started.agent("arm-1")
    process = importing(agent, path)
    for part in (10, 60):
        until(lambda part=part: started.wire.batches >= part, seconds=60)
        started.wire.cut()
        time.sleep(1)
        started.wire.connect()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    report = json.loads(output)
    assert report["messages"] == report["samples"] == report["acknowledged"] == MESSAGES
    assert (report["dropped"], report["refused"], report["spooled"]) == (0, 0, 0)
    stored = started.rows("/arm/joint.id")
    assert len(stored) == MESSAGES
    assert sorted(stored) == [float(number) for number in range(MESSAGES)]
    again = json.loads(agent.command("agent", "import", str(path), "--json"))
    assert again["messages"] == MESSAGES
    assert len(started.rows("/arm/joint.id")) == MESSAGES
