"""The command line: errors are two lines, exit codes mean what they say, nothing needs a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from support.cli import run
from tensorguard import __version__
from tensorguard.cli import AREAS
from tensorguard.platform.db.engine import engine_for

ADMIN = "user create-admin --tenant acme --username ada --generate --json"


@pytest.fixture
def machine(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A development machine with a migrated database; returns its data folder."""
    home = tmp_path / "home"
    monkeypatch.setenv("TG_ENVIRONMENT", "development")
    monkeypatch.setenv("TG_HOME", str(home))
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    return home


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where nothing is set, which is production."""
    for name in ("TG_ENVIRONMENT", "TG_HOME", "DATABASE_URL", "TG_SECRET_KEY", "TG_KEY_PROVIDER"):
        monkeypatch.delenv(name, raising=False)


Capture = pytest.CaptureFixture[str]


def test_help_names_every_area_and_loads_none(capsys: Capture) -> None:
    ended = run(capsys, "--help")
    assert ended.status == 0
    assert all(area in ended.output for area in AREAS)
    began = time.monotonic()
    program = (
        "import sys\nfrom tensorguard.cli import main\n"
        "try:\n    main(['--help'])\nfinally:\n"
        "    assert not {'sqlalchemy', 'fastapi', 'tenseal', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert time.monotonic() - began < 5


def test_the_version(capsys: Capture) -> None:
    assert run(capsys, "--version").output == f"tensorguard {__version__}\n"


@pytest.mark.parametrize("area", AREAS)
def test_every_area_has_help(capsys: Capture, area: str) -> None:
    ended = run(capsys, f"{area} --help")
    assert ended.status == 0
    assert f"tensorguard {area}" in ended.output


@pytest.mark.parametrize("command", ["nope", "db nope", "user create", "--nope"])
def test_wrong_usage_is_2(capsys: Capture, command: str) -> None:
    assert run(capsys, command).status == 2


@pytest.mark.usefixtures("production")
@pytest.mark.parametrize("command", ["db current", ADMIN, "keys list", "audit verify"])
def test_administration_refuses_with_json_and_text(capsys: Capture, command: str) -> None:
    ended = run(capsys, command)
    assert (ended.status, ended.output) == (78, "")
    first, *rest = ended.error.splitlines()
    gates = [row["id"] for row in json.loads(first)["gates"]]
    assert "SECRET_KEY" in gates
    assert any(line.startswith("[PRODUCTION GATE FAILED: SECRET_KEY]") for line in rest)


@pytest.mark.usefixtures("production")
def test_doctor_shows_what_refuses(capsys: Capture) -> None:
    ended = run(capsys, "doctor --role operator --json")
    rows = {row["id"]: row for row in ended.json()["gates"]}
    assert ended.status == 78
    assert rows["SECRET_KEY"]["result"] == "fail"
    assert rows["SECRET_KEY"]["remedy"]
    assert rows["ENVIRONMENT"]["result"] == "pass"
    assert run(capsys, "doctor --role client").status == 0


@pytest.mark.usefixtures("machine")
def test_doctor_on_a_development_machine_shows_what_production_would_refuse(
    capsys: Capture,
) -> None:
    ended = run(capsys, "doctor --json")
    rows = {row["id"]: row["result"] for row in ended.json()["gates"]}
    assert ended.status == 0
    assert rows["DATABASE_KIND"] == "relaxed"
    assert rows["DATABASE_REVISION"] == "pass"
    assert "TG_AUDIT_HEAD_SECONDS" in {row["name"] for row in ended.json()["variables"]}


@pytest.mark.usefixtures("machine")
def test_people_are_made_listed_and_banned(capsys: Capture, tmp_path: Path) -> None:
    made = run(capsys, ADMIN).json()
    assert (made["tenant"], made["role"]) == ("acme", "admin")
    assert len(made["password"]) == 24
    secret = tmp_path / "password"
    secret.write_text("a plough in the northern field\n")
    secret.chmod(0o600)
    more = f"user create --tenant acme --username bob --role viewer --password-file {secret}"
    assert run(capsys, more).output == "acme / bob: viewer\n"
    again = run(capsys, more)
    assert (again.status, "user bob exists" in again.error) == (1, True)
    secret.chmod(0o644)
    assert "can be read by others" in run(capsys, more).error
    assert run(capsys, "user disable --tenant acme --username bob").status == 0
    last = run(capsys, "user disable --tenant acme --username ada")
    assert (last.status, "last administrator" in last.error) == (1, True)
    listed = [json.loads(line) for line in run(capsys, "user list --json").output.splitlines()]
    assert [(row["username"], row["disabled"]) for row in listed] == [("ada", False), ("bob", True)]
    unknown = run(capsys, "user disable --tenant nowhere --username x")
    assert unknown.error == (
        "error: there is no tenant 'nowhere'\n"
        "hint: Check the identifier and the tenant you are signed in to.\n"
    )


@pytest.mark.usefixtures("machine")
def test_no_password_without_a_terminal_is_refused(capsys: Capture) -> None:
    ended = run(capsys, "user create-admin --tenant acme --username ada")
    assert (ended.status, ended.error.count("\n")) == (1, 2)
    assert run(capsys, "user list").output == ""


def test_keys_are_made_shown_and_exported(capsys: Capture, machine: Path) -> None:
    made = run(capsys, "keys create release --purpose pack-signing --json").json()
    assert made["algorithm"] == "Ed25519+ML-DSA-65"
    assert run(capsys, "keys show release --json").json() == made
    out = machine / "release.pub.json"
    assert run(capsys, f"keys export-public release --out {out}").status == 0
    assert json.loads(out.read_bytes())["name"] == "release"
    wrong = run(capsys, f"keys export-public release --out {machine / 'release.json'}")
    assert (wrong.status, "trust store" in wrong.error) == (1, True)
    run(capsys, "keys create tokens --purpose token-signing")
    jwks = machine / "jwks.json"
    run(capsys, f"keys export-public tokens --out {jwks}")
    assert json.loads(jwks.read_bytes())["keys"][0]["alg"] == "EdDSA"
    run(capsys, "keys create rest --purpose data-at-rest")
    assert run(capsys, f"keys export-public rest --out {jwks}").status == 1
    assert run(capsys, "keys create release --purpose pack-signing").status == 1
    assert run(capsys, "keys create ../x --purpose pack-signing").status == 1
    names = [line.split()[0] for line in run(capsys, "keys list").output.splitlines()]
    assert {"release", "tokens", "rest"} <= set(names)


def test_a_trail_is_exported_and_verified_offline(capsys: Capture, machine: Path) -> None:
    run(capsys, ADMIN)
    assert run(capsys, "audit verify").status == 0
    out, trust = machine / "trail.jsonl", machine / "audit.pub.json"
    assert run(capsys, f"audit export --tenant acme --out {out}").status == 0
    run(capsys, f"keys export-public audit-head --out {trust}")
    offline = f"audit verify --export {out} --trust {trust} --json"
    found = run(capsys, offline).json()
    assert (found["events"], found["signed"], found["result"]) == (2, 2, "ok")
    out.write_bytes(out.read_bytes().replace(b"user.created", b"user.removed"))
    broken = run(capsys, offline)
    assert (broken.status, broken.json()["event"]) == (1, 2)
    assert broken.error.startswith("error: event 2 was edited\nhint: ")
    assert run(capsys, f"audit verify --export {out}").status == 1  # nothing to trust


def test_a_tampered_database_is_named_and_1(
    capsys: Capture, machine: Path, sqlite_url: str
) -> None:
    assert run(capsys, "audit verify").status == 1  # no tenant: nothing holds
    run(capsys, ADMIN)
    engine = engine_for(sqlite_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE audit_event SET actor = 'x' WHERE seq = 2"))
    engine.dispose()
    broken = run(capsys, "audit verify --tenant acme --json")
    assert (broken.status, broken.json()["event"]) == (1, 2)
    exported = run(capsys, f"audit export --tenant acme --out {machine / 'evidence.jsonl'}")
    assert exported.status == 0  # a broken trail is evidence
    assert (machine / "evidence.jsonl").is_file()


def test_a_database_that_is_down_is_two_lines(
    capsys: Capture, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite+pysqlite:///{machine / 'no' / 'such.db'}")
    ended = run(capsys, "user list")
    assert ended.status == 1
    assert ended.error.startswith("error: the database cannot be used")
    assert "Traceback" not in ended.error
