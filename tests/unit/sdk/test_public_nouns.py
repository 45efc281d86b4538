"""`tensorguard.sdk` shows its nouns, and loads only what is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tensorguard import sdk


def test_every_public_noun_is_there_and_nothing_else() -> None:
    assert dir(sdk) == sorted(sdk.__all__)
    assert set(sdk.__all__) == set(sdk._MODULES)
    for name in sdk.__all__:
        assert getattr(sdk, name).__name__ == name
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = sdk.Nonsense


def test_telemetry_loads_no_encryption_library_and_no_server() -> None:
    program = (
        "import sys; from tensorguard.sdk import DeviceIdentity, TelemetryClient; "
        "print(sorted({'tenseal', 'fastapi', 'starlette', 'sqlalchemy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
