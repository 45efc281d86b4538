"""Processes that a bench or a test starts on loopback, and what they use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tensorguard.errors import TensorGuardError

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0


class ProcessFailed(TensorGuardError):
    code = "bench_process"
    remedy = "Run the command by hand and read what it prints."


def free_port() -> int:
    """Return a TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """A Python process of ours that listens on a port."""

    def __init__(
        self, arguments: Sequence[str], port: int, environment: Mapping[str, str], log: Path
    ) -> None:
        self._arguments = arguments
        self._environment = dict(environment)
        self._log = log
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id. Raises `ProcessFailed` when it does not run."""
        if self._process is None:
            raise ProcessFailed("the process was ended")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens. Raises `ProcessFailed`."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._arguments], env=self._environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise ProcessFailed(f"a process did not start: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """Kill it, as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it, with time to finish what it does."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


@contextmanager
def child(
    arguments: Sequence[str], port: int, environment: Mapping[str, str], log: Path
) -> Iterator[Child]:
    """Start a process; end it when the block ends."""
    made = Child(arguments, port, environment, log)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def rss_megabytes(pid: int) -> float:
    """Return the resident memory of a process (10^6 bytes)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(pid: int, *, children: bool = False) -> float:
    """Return the CPU time of a process, and of all its children, living or waited for."""
    fields = _stat(pid)
    ticks = int(fields[11]) + int(fields[12])
    if children:
        ticks += int(fields[13]) + int(fields[14])
        for child_pid in _children(pid):
            own = _stat(child_pid)
            ticks += int(own[11]) + int(own[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(number) for number in text.split()]


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:  # it ended; the parent counts it now
        return ["0"] * 50
    return text.rpartition(")")[2].split()
