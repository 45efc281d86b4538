"""Each import contract can fail: a copy of the package with one forbidden import is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BREAKS = {
    "layers": ("errors.py", "from tensorguard import settings"),
    "servers-cannot-decrypt": ("serving/app.py", "from tensorguard.moai import client"),
    "research-is-not-served": ("serving/app.py", "from tensorguard.moai import research"),
    "clients-stay-thin": ("sdk/__init__.py", "import fastapi"),
    "policy-is-pure": ("moai/plan.py", "import subprocess"),
    "feature-layers": (
        "platform/users/repository.py",
        "from tensorguard.platform.users import service",
    ),
    "only-endpoints-speak-http": ("platform/users/service.py", "import starlette"),
    "only-platform-has-a-database": ("keys/file.py", "import sqlalchemy"),
}


def lint(folder: Path, contract: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; from importlinter.cli import lint_imports; "
        f"sys.exit(lint_imports(no_cache=True, limit_to_contracts=({contract!r},)))"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(
        ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    return folder


@pytest.mark.xdist_group("import-contracts")
@pytest.mark.parametrize("contract", BREAKS)
def test_contract_holds_and_one_forbidden_import_breaks_it(copy: Path, contract: str) -> None:
    name, line = BREAKS[contract]
    path = copy / "src" / "tensorguard" / name
    original = path.read_text()
    held = lint(copy, contract)
    assert held.returncode == 0, held.stdout + held.stderr
    path.write_text(original + f"\n{line}\n")
    try:
        broken = lint(copy, contract)
    finally:
        path.write_text(original)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert "BROKEN" in broken.stdout


def test_every_contract_has_a_break() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    declared = {line.split('"')[1] for line in text.splitlines() if line.startswith('id = "')}
    assert declared == BREAKS.keys()


def ruff(path: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "ruff", "check", "--no-cache", "--select", "TID251"]
    return subprocess.run(
        [*command, path], cwd=path.parents[2], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "line",
    ["import os\nprint(os.environ)", "from os import environ", "import os\nos.getenv('X')"],
)
def test_only_settings_reads_the_environment(copy: Path, line: str) -> None:
    reader = copy / "src" / "tensorguard" / "wire" / "reads_environment.py"
    reader.write_text(line + "\n")
    try:
        found = ruff(reader)
    finally:
        reader.unlink()
    assert found.returncode == 1
    assert "TID251" in found.stdout
    assert ruff(copy / "src" / "tensorguard").returncode == 0
