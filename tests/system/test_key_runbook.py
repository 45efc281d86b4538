"""Every command of docs/runbooks/key-rotation.md, as it stands there, against a real platform."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import httpx

from support.platform import Databases
from support.platform_process import platform_process
from support.production import process_environment

RUNBOOK = Path(__file__).parents[2] / "docs/runbooks/key-rotation.md"
RESTART = "<!-- the platform restarts with this environment -->"
PIECE = re.compile(rf"```console\n(.*?)```|({re.escape(RESTART)})", re.DOTALL)


def pieces() -> list[str]:
    """The console blocks, and the places where the platform restarts, in order."""
    found = PIECE.findall(RUNBOOK.read_text())
    return [RESTART if restart else block for block, restart in found]


def commands(block: str) -> list[str]:
    lines = block.splitlines()
    assert lines
    assert all(line.startswith("$ ") for line in lines), block
    return [line.removeprefix("$ ") for line in lines]


def shell(line: str, variables: dict[str, str], folder: Path) -> dict[str, str]:
    """Run one line in bash; return the environment that it left."""
    after = folder / "environment"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'{line}\nenv -0 > "{after}"'],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    entries = after.read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def test_every_command_of_the_runbook(postgresql_databases: Databases, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    ran = 0
    with (
        postgresql_databases.one("postgresql", migrated=True) as url,
        platform_process(tmp_path, url, TG_KEY_POLICY_SECONDS="3600") as platform,
    ):
        token = platform.sign_in("platform", "security")
        variables = process_environment(
            {**platform.variables, "PLATFORM": platform.url, "TOKEN": token}
        )
        headers = {"Authorization": f"Bearer {token}"}
        adopted = httpx.get(f"{platform.url}/api/v1/keys", headers=headers, trust_env=False)
        assert len(adopted.json()["items"]) == 3
        for piece in pieces():
            if piece == RESTART:
                platform.restart({k: v for k, v in variables.items() if k != "TOKEN"})
                continue
            for line in commands(piece):
                variables = shell(line, variables, work)
                ran += 1
        assert "Traceback" not in platform.log.read_text()
    assert ran >= 30


def test_the_runbook_names_every_key_command() -> None:
    from typer.main import get_command

    from tensorguard.cli.keys import app

    text = RUNBOOK.read_text()
    names = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {name for name in names if f"tensorguard keys {name}" in text} == names
