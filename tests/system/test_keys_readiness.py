"""A platform whose key custody goes away stays up and says it is not ready; when it is back, so is it."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from support.keys import (
    bao,
    credentials,
    end,
    free_port,
    make_token,
    prefix,
    private_file,
    start_bao,
    start_kms,
)

READY_SECONDS = 30.0
NOTICED_SECONDS = 5.0


@contextmanager
def platform(
    folder: Path, database_url: str, provider: str, variables: Mapping[str, str]
) -> Iterator[str]:
    """A real platform process; yields its URL."""
    port = free_port()
    home = folder / "home"
    home.mkdir(mode=0o700)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "TG_ENVIRONMENT": "development",
        "TG_HOME": str(home),
        "TG_KEY_PROVIDER": provider,
        "TG_SECRET_KEY": secrets.token_hex(32),
        "DATABASE_URL": database_url,
        **variables,
    }
    command = [sys.executable, "-m", "uvicorn", "tensorguard.platform.app:create_app", "--factory"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"http://127.0.0.1:{port}"
        assert process.poll() is None
    finally:
        end(process)


def wait_for(url: str, status: int, seconds: float) -> httpx.Response:
    """Ask /ready until it answers `status`."""
    until = time.monotonic() + seconds
    last: httpx.Response | None = None
    while time.monotonic() < until:
        try:
            last = httpx.get(f"{url}/ready", timeout=20, trust_env=False)
        except httpx.TransportError:
            last = None
        if last is not None and last.status_code == status:
            return last
        time.sleep(0.1)
    raise AssertionError(f"/ready did not answer {status}: {last and last.text}")


def stays_up(url: str) -> None:
    refused = wait_for(url, 503, NOTICED_SECONDS)
    assert refused.json()["checks"] == {"database": "ok", "key_provider": "unusable"}
    assert httpx.get(f"{url}/health", timeout=10, trust_env=False).status_code == 200


def test_a_token_that_is_pulled_out_and_put_back(sqlite_url: str, tmp_path: Path) -> None:
    token = make_token(tmp_path)
    variables = {"SOFTHSM2_CONF": str(tmp_path / "softhsm2.conf")}
    with platform(tmp_path, sqlite_url, f"pkcs11:{token.rest()}", variables) as url:
        wait_for(url, 200, READY_SECONDS)
        place, away = token.token, tmp_path / "away"
        place.rename(away)
        stays_up(url)
        away.rename(place)
        wait_for(url, 200, NOTICED_SECONDS)


def killed_kms() -> tuple[str, dict[str, str], Callable[[], None]]:
    process, endpoint = start_kms()
    uri = f"awskms:eu-central-1/{prefix()}?endpoint={endpoint}"
    return uri, credentials(), lambda: end(process)


def killed_vault(token: Path) -> tuple[str, dict[str, str], Callable[[], None]]:
    server = start_bao()
    private_file(token, server.root)
    return f"vault:{server.rest(prefix(), token)}", {}, lambda: end(server.process)


@pytest.mark.parametrize("kind", ["awskms", "vault"])
def test_a_server_that_is_killed(sqlite_url: str, tmp_path: Path, kind: str) -> None:
    uri, variables, kill = (
        killed_kms() if kind == "awskms" else killed_vault(tmp_path / "vault-token")
    )
    with platform(tmp_path, sqlite_url, uri, variables) as url:
        wait_for(url, 200, READY_SECONDS)
        kill()
        stays_up(url)


def test_a_vault_token_that_loses_and_regains_its_rights(sqlite_url: str, tmp_path: Path) -> None:
    token = private_file(tmp_path / "token", bao().root)
    with platform(tmp_path, sqlite_url, f"vault:{bao().rest(prefix(), token)}", {}) as url:
        wait_for(url, 200, READY_SECONDS)
        poor = bao().call("POST", "auth/token/create", policies=["default"])["auth"]
        token.write_text(poor["client_token"])
        stays_up(url)
        token.write_text(bao().root)
        wait_for(url, 200, NOTICED_SECONDS)
