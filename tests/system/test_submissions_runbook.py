"""docs/runbooks/failed-submissions.md, run as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agents import Site, say, site, until
from support.production import process_environment

RUNBOOK = Path(__file__).parents[2] / "docs/runbooks/failed-submissions.md"
BLOCK = re.compile(r"^## \d\. (.+?)$|^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DAY = 86_400_000_000_000
pytestmark = pytest.mark.xdist_group("agent-process")


def blocks() -> list[tuple[str, str]]:
    """Return (heading, commands) of the runbook, in order."""
    found, heading = [], ""
    for title, commands in BLOCK.findall(RUNBOOK.read_text()):
        if title:
            heading = title
        else:
            found.append((heading, commands))
    return found


@pytest.fixture
def started(tmp_path: Path, sqlite_url: str) -> Iterator[Site]:
    with site(tmp_path, sqlite_url) as running:
        yield running


def refused(now: int) -> list[dict]:
    late = [{"name": "late", "value": n, "ts": now - 60 * DAY + n} for n in range(10)]
    return [*late, {"name": "wrong", "value": 1, "ts": now, "labels": {"text": "x" * 2000}}]


@pytest.mark.invariant("TG-I64")
def test_the_runbook_brings_back_what_was_refused(started: Site) -> None:
    agent = started.agent("arm-1", "--no-system").start()
    now = time.time_ns()
    good = [{"name": "good", "value": n, "ts": now - n * 1_000_000} for n in range(9)]
    say(agent.folder / "agent.sock", [*good, *refused(now)])
    until(lambda: agent.waiting() == 0)
    assert (len(started.rows("good")), started.rows("late")) == (9, [])
    assert agent.status()["dead"] == 11
    variables = process_environment(
        {
            "TG_ENVIRONMENT": "development",
            "AGENT_DIR": str(agent.folder),
            "URL": started.wire.url,
            "TOKEN_FILE": str(started.token_file),
        }
    )
    headings = [heading for heading, _ in blocks()]
    assert headings == sorted(headings, key=headings.index)
    assert len(set(headings)) == 4
    repaired = False
    for heading, commands in blocks():
        if heading.startswith("Drop") and not repaired:  # the cause was removed in between
            repaired = True
            started.platform.stop()
            started.platform.variables["TG_MAX_SAMPLE_AGE_DAYS"] = "90"
            started.platform.start()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{heading}\n{commands}\n{done.stdout}{done.stderr}"
    assert repaired
    assert sorted(started.rows("late")) == [float(n) for n in range(10)]
    assert started.rows("wrong") == []
    status = agent.status()
    assert (status["acknowledged"], status["replayed"], status["discarded"]) == (19, 10, 1)
    assert agent.stop() == 0


def test_a_batch_of_500_with_3_bad_samples_stores_497(started: Site) -> None:
    agent = started.agent("arm-2", "--no-system").start()
    now = time.time_ns()
    lines = [{"name": "many", "value": n, "ts": now - n * 1_000_000} for n in range(500)]
    for place in (7, 250, 499):
        lines[place]["ts"] = now + DAY
    say(agent.folder / "agent.sock", lines)
    until(lambda: agent.waiting() == 0)
    assert len(started.rows("many")) == 497
    shown = agent.command("submissions", "list", "--json").splitlines()
    letters = [json.loads(line) for line in shown]
    assert sorted(letter["sample"]["value"] for letter in letters) == [7, 250, 499]
    assert all(letter["reason"] for letter in letters)
    words = ("--url", started.wire.url, "--token-file", str(started.token_file))
    kept = agent.command("submissions", "list", "--json", *words).splitlines()
    assert len(kept) == 3
    shown = json.loads(agent.command("submissions", "show", "1", "--json", *words))
    assert "many" in json.dumps(shown)
    agent.command("submissions", "replay", "--all", *words, status=1)  # it is not tomorrow yet
    assert json.loads(agent.command("submissions", "drop", "--all", "--json", *words)) == {
        "dropped": 3
    }
    agent.command("submissions", "show", "1", *words, status=1)
    agent.command("submissions", "replay", "77", status=1)
    agent.command("submissions", "replay", status=2)
    assert json.loads(agent.command("submissions", "drop", "1", "2", "--json")) == {"dropped": 2}
    assert (agent.status()["dead"], agent.status()["discarded"]) == (1, 2)
    assert agent.stop() == 0
