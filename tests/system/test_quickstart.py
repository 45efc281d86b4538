"""The main job runs as `make run` runs it, twice; what it prints is measured and adds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.moai import installed_backends
from support.production import free_port

ROOT = Path(__file__).parents[2]


def quickstart(home: Path, *words: str) -> dict[str, Any]:
    environment = {**os.environ, "TG_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, ROOT / "examples/reacher/quickstart.py", "--once", "--json", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.xdist_group("quickstart")
def test_the_arm_is_steered_encrypted_and_no_sample_is_lost(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    # ports of our own: another quickstart may run on this machine
    (home / "ports.json").write_text(json.dumps([free_port(), free_port()]))
    first = quickstart(home, "--episodes", "5")
    assert first["samples_sent"] == first["samples_acked"] == first["samples_stored"] == 5 * 3 * 350
    gap = abs(first["return_encrypted"] - first["return_plaintext"])
    assert gap <= 0.02 * abs(first["return_plaintext"])
    assert first["max_action_error"] <= 1e-2
    assert 0 < first["latency_ms"]["p50"] <= first["latency_ms"]["p99"]
    identity = sorted(home.glob("arm/identity-*/device.json"))
    pack = next((home / "packs").glob("*.moai")).read_bytes()

    fastest = installed_backends()[-1]
    second = quickstart(home, "--episodes", "1", "--backend", fastest)
    assert (first["backend"], second["backend"]) == ("tenseal", fastest)
    assert second["samples_sent"] == second["samples_acked"] == second["samples_stored"] == 3 * 350
    assert sorted(home.glob("arm/identity-*/device.json")) == identity
    assert next((home / "packs").glob("*.moai")).read_bytes() == pack


def test_a_backend_that_is_not_installed_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "tensorguard_moai_native.py"
    absent.parent.mkdir()
    absent.write_text("raise ModuleNotFoundError('No module named tensorguard_moai_native')")
    done = subprocess.run(
        [sys.executable, ROOT / "examples/reacher/quickstart.py", "--json"],
        env={
            **os.environ,
            "TG_HOME": str(tmp_path / "home"),
            "TG_MOAI_BACKEND": "native",
            "PYTHONPATH": str(absent.parent),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "tensorguard_moai_native" in json.loads(done.stdout)["error"]
    assert "hint: Set TG_MOAI_BACKEND to tenseal" in done.stderr
