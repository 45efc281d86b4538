"""A sound production configuration, and real processes started from a broken one."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorguard.crypto.hybrid import SoftwareHybridSigner

BIN = Path(sys.executable).parent
LIMIT_SECONDS = 5.0
PATIENCE_SECONDS = 30.0


def sound_environment(folder: Path, database_url: str) -> dict[str, str]:
    """Return variables under which both servers start in production."""
    home, trust, packs = folder / "home", folder / "trust", folder / "packs"
    for path in (home, trust, packs):
        path.mkdir(mode=0o700, exist_ok=True)
    public = SoftwareHybridSigner.generate().public_key
    (trust / "signer.pub.json").write_bytes(public.to_json(name="signer"))
    jwks = folder / "jwks.json"
    jwks.write_text('{"keys":[]}')
    return {
        "TG_ENVIRONMENT": "production",
        "TG_SECRET_KEY": secrets.token_hex(32),
        "TG_KEY_MASTER": secrets.token_hex(32),
        "TG_KEY_PROVIDER": f"file:{home / 'keys'}",
        "DATABASE_URL": database_url,
        "TG_HOME": str(home),
        "TG_PUBLIC_URL": "https://fleet.example",
        "TG_BEHIND_TLS_PROXY": "true",
        "TG_TRUST_STORE": str(trust),
        "TG_PACK_DIR": str(packs),
        "TG_GRANT_JWKS": str(jwks),
    }


def free_port() -> int:
    """Return a loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_open(port: int) -> bool:
    """Whether something accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int | None
    seconds: float  # of processor time: a busy machine does not make a test fail
    output: str
    port_was_open: bool


def process_environment(variables: Mapping[str, str | None]) -> dict[str, str]:
    """Return a minimal environment with `variables`; None leaves one out."""
    base = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    return base | {name: value for name, value in variables.items() if value is not None}


def run_until_refusal(
    command: Iterable[str], variables: Mapping[str, str | None], port: int
) -> Ended:
    """Start a process that ought to refuse; watch its port until it ends or the limit passes."""
    began = time.monotonic()
    read, write = os.pipe()
    process = subprocess.Popen(
        [*command], env=process_environment(variables), stdout=write, stderr=write
    )
    os.close(write)
    opened = False
    while True:
        found, waited, usage = os.wait4(process.pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() - began > PATIENCE_SECONDS:
            process.kill()
        opened = opened or is_open(port)
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(waited)
    with os.fdopen(read, "rb") as pipe:
        output = pipe.read().decode(errors="replace")
    seconds = usage.ru_utime + usage.ru_stime
    return Ended(process.returncode, seconds, output, opened)
