"""`tensorguard db` on both databases, as an operator runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.cli import run
from tensorguard.platform.db import revision


@pytest.fixture
def machine(empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TG_ENVIRONMENT", "development")
    monkeypatch.setenv("TG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATABASE_URL", empty_database_url)


@pytest.mark.usefixtures("machine")
def test_up_check_down_and_up_again_with_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "db current --json").json() == {"current": None, "head": revision.head()}
    assert run(capsys, "db check").status == 78
    assert run(capsys, "db upgrade").status == 0
    made = run(capsys, "user create-admin --tenant acme --username ada --generate --json")
    assert made.status == 0, made.error
    assert run(capsys, "db check").status == 0
    assert run(capsys, "db downgrade base").output.strip().endswith("-> empty")
    refused = run(capsys, "user list")
    assert (refused.status, "tensorguard db upgrade" in refused.error) == (78, True)
    assert run(capsys, "db upgrade").status == 0
    assert run(capsys, "db check").status == 0
    assert run(capsys, "user list --json").output == ""
    assert json.loads(run(capsys, "db current --json").output)["current"] == revision.head()


@pytest.mark.usefixtures("machine")
def test_an_unknown_revision_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    refused = run(capsys, "db upgrade nowhere")
    assert refused.status == 78
    assert refused.error.startswith("error: ")
    assert "\nhint: " in refused.error
