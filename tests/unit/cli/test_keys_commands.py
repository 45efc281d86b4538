"""`tensorguard keys` from the first version of a key to its last, and what the trail says of it."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from sqlalchemy import text

from support.cli import run
from tensorguard.crypto.trust import TrustStore
from tensorguard.platform.db.engine import engine_for
from tensorguard.settings import Settings

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def machine(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A development machine with a migrated database; returns its data folder."""
    home = tmp_path / "home"
    monkeypatch.setenv("TG_ENVIRONMENT", "development")
    monkeypatch.setenv("TG_HOME", str(home))
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    monkeypatch.setenv("TG_KEY_MASTER", secrets.token_hex(32))
    for name in ("TG_KEY_PROVIDER", "TG_KEY_MASTER_NEW", "TG_OTHER_MASTER"):
        monkeypatch.delenv(name, raising=False)
    return home


def trail(url: str) -> list[str]:
    engine = engine_for(url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT action FROM audit_event ORDER BY seq")).all()
    engine.dispose()
    return [action for (action,) in rows]


def test_the_life_of_a_key_is_in_the_trail(capsys: Capture, machine: Path, sqlite_url: str) -> None:
    message, signature = machine.parent / "message", machine.parent / "signature"
    message.write_bytes(b"a message")
    run(capsys, "keys create release --purpose pack-signing --json")
    signed = run(capsys, f"keys sign release {message} --out {signature}")
    assert (signed.status, signed.output) == (0, f"release v1 -> {signature}\n")
    assert run(capsys, "keys stage release --json").json()["state"] == "pending"
    assert run(capsys, "keys rotate release --json").json()["version"] == 2
    checked = run(capsys, f"keys verify release {message} --signature {signature} --json")
    assert checked.json() == {"key_id": "release", "result": "ok", "version": 1}
    assert run(capsys, "keys retire release --version 2").status == 1
    assert run(capsys, "keys retire release --version 1 --json").json()["state"] == "retired"
    assert run(capsys, f"keys verify release {message} --signature {signature}").status == 0
    folder = machine.parent / "trust"
    assert run(capsys, f"keys export-public release --all --out {folder}").status == 0
    store = TrustStore.from_folder(folder)
    assert len(list(folder.glob("*.pub.json"))) == 2
    assert store is not None
    message.write_bytes(b"another message")
    refused = run(capsys, f"keys verify release {message} --signature {signature}")
    assert (refused.status, "error: the signature does not match" in refused.error) == (1, True)
    assert run(capsys, "keys disable release --json").json()["disabled"] is True
    assert "is disabled" in run(capsys, f"keys sign release {message}").error
    assert run(capsys, "keys enable release").status == 0
    doomed = run(capsys, "keys destroy release --version 1 --delay-days 1 --json").json()
    assert doomed["destroy_at"]
    assert run(capsys, "keys destroy release --version 1 --cancel").status == 0
    states = [
        json.loads(line)["state"]
        for line in run(capsys, "keys show release --versions --json").output.splitlines()
    ]
    assert states == ["retired", "active"]
    assert trail(sqlite_url) == [
        "tenant.created",
        "key.created",
        "key.signed",
        "key.staged",
        "key.rotated",
        "key.retired",
        "key.disabled",
        "key.enabled",
        "key.destruction_scheduled",
        "key.destruction_cancelled",
    ]


@pytest.mark.invariant("TG-I22")
def test_a_trail_that_cannot_be_written_stops_every_command(
    capsys: Capture, machine: Path, sqlite_url: str
) -> None:
    message = machine.parent / "message"
    message.write_bytes(b"a message")
    run(capsys, "keys create release --purpose pack-signing")
    engine = engine_for(sqlite_url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER no_audit BEFORE INSERT ON audit_event "
                "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
            )
        )
    engine.dispose()
    for command in (f"sign release {message}", "rotate release", "disable release"):
        ended = run(capsys, f"keys {command}")
        assert (ended.status, ended.output) == (1, ""), command
        assert ended.error.startswith("error: the database cannot be used")
    assert run(capsys, "keys create more --purpose pack-signing").status == 1
    listed = [json.loads(line) for line in run(capsys, "keys list --json").output.splitlines()]
    assert [(row["key_id"], row["version"]) for row in listed if row["key_id"] == "release"] == [
        ("release", 1)
    ]
    assert "more" not in {row["key_id"] for row in listed}


@pytest.mark.usefixtures("machine")
def test_the_platforms_own_keys_are_not_used_by_hand(capsys: Capture, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_bytes(b"a message")
    run(capsys, "keys create token-signing --purpose token-signing")
    refused = run(capsys, f"keys sign token-signing {message}")
    assert (refused.status, refused.output) == (1, "")
    assert "a key of the platform itself" in refused.error
    run(capsys, "keys create audit-head --purpose audit-head")
    run(capsys, "keys rotate audit-head")
    run(capsys, "keys retire audit-head --version 1")
    assert "would no longer verify" in run(capsys, "keys destroy audit-head --version 1").error


def test_a_new_master(capsys: Capture, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(capsys, "keys create release --purpose pack-signing --json").json()
    command = "keys rewrap --new-master-env TG_OTHER_MASTER --json"
    missing = run(capsys, command)
    assert (missing.status, "TG_OTHER_MASTER is not set" in missing.error) == (78, True)
    assert run(capsys, "keys rewrap --new-master-env PATH").status == 78
    monkeypatch.setenv("TG_OTHER_MASTER", "00" * 32)
    weak = run(capsys, command)
    assert (weak.status, "constant" in weak.error) == (78, True)
    new = secrets.token_hex(32)
    monkeypatch.setenv("TG_OTHER_MASTER", new)
    assert run(capsys, command).json()["keys"] >= 1
    assert run(capsys, command).json() == {"keys": 0}  # again changes nothing
    assert run(capsys, "keys list").status == 1  # the old master opens nothing
    monkeypatch.setenv("TG_KEY_MASTER", new)
    assert run(capsys, "keys show release --json").json() == made


@pytest.mark.usefixtures("machine")
def test_rewrap_of_stored_secrets_without_any(capsys: Capture) -> None:
    assert run(capsys, "keys rewrap --json").json() == {"secrets": 0}


def test_a_machine_without_a_database_says_that_nothing_is_recorded(
    capsys: Capture, tmp_path: Path, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    made = run(capsys, "keys create release --purpose pack-signing --json")
    assert made.status == 0
    monkeypatch.setenv("DATABASE_URL", f"sqlite+pysqlite:///{tmp_path / 'none' / 'x.db'}")
    assert run(capsys, "keys rotate release").status == 1


def test_a_named_variable_is_one_of_ours() -> None:
    value = secrets.token_bytes(32)
    assert Settings.named_secret("TG_X", {"TG_X": value.hex()}).get_secret_value() == value
