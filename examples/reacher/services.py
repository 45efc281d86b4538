"""The two servers of the quickstart: real processes on loopback, started and ended by process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx

READY_SECONDS = 60.0
STOP_SECONDS = 10.0
TENSORGUARD = str(Path(sys.executable).parent / "tensorguard")


class StartError(RuntimeError):
    """A server did not become ready; its log says why."""


def command(*words: str, environment: Mapping[str, str]) -> str:
    """Run one `tensorguard` command and return what it printed."""
    done = subprocess.run(
        [TENSORGUARD, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise StartError(f"tensorguard {' '.join(words)} failed:\n{done.stderr.strip()}")
    return done.stdout


def port_for(preferred: int) -> int:
    """Return `preferred` if nothing listens there, else a free loopback port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StartError("no loopback port is free")


class Service:
    """One server process with its log in a file."""

    def __init__(
        self, words: Sequence[str], *, port: int, environment: Mapping[str, str], log: Path
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        try:
            self._process = subprocess.Popen(
                [TENSORGUARD, *words, "--host", "127.0.0.1", "--port", str(port)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=descriptor,
                start_new_session=True,  # Ctrl-C reaches the quickstart, which ends them in order
            )
        finally:
            os.close(descriptor)

    def wait_until_ready(self) -> None:
        """Wait for `GET /ready`. Raises `StartError` with the end of the log."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/ready", timeout=2).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        tail = "\n".join(self._log.read_text().splitlines()[-15:])
        raise StartError(f"{self.url} did not become ready; the end of {self._log}:\n{tail}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
