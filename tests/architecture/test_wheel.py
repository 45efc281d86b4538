"""The wheel is reproducible, and holds the package and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(source: Path, out: Path, umask: int) -> Path:
    out.mkdir()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600", "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    subprocess.run(
        command, check=True, env=environment, umask=umask, capture_output=True, timeout=120
    )
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    for name in ("one", "another-folder"):
        for path in tracked.decode().strip("\0").split("\0"):
            if (ROOT / path).is_file():
                target = base / name / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, target)
    one = build(base / "one", base / "out-one", 0o022)
    return one, build(base / "another-folder", base / "out-two", 0o077)


@pytest.mark.xdist_group("wheel")
def test_two_builds_from_two_folders_are_byte_identical(wheels: tuple[Path, Path]) -> None:
    one, two = wheels
    assert one.read_bytes() == two.read_bytes()
    (sdist_one,), (sdist_two,) = (w.parent.glob("*.tar.gz") for w in wheels)
    assert sdist_one.read_bytes() == sdist_two.read_bytes()


@pytest.mark.xdist_group("wheel")
def test_wheel_holds_no_example_simulator_data_or_test(wheels: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(wheels[0]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"tensorguard", "tensorguard-0.1.0.dist-info"}
    assert not [
        n for n in names if any(w in n for w in ("example", "reacher", "test_", "conftest"))
    ]
    assert "tensorguard/py.typed" in names
    suffixes = {Path(name).suffix for name in names if name.startswith("tensorguard/")}
    assert suffixes <= {".py", ".typed", ".mako", ".service"}
    assert "tensorguard/agent/tensorguard-agent.service" in names
