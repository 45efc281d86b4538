"""A throw-away PostgreSQL cluster on a Unix socket, run as `postgres` when the caller is root.

It can be killed and started again on the same data, as a machine would that lost its database.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from tensorguard.errors import ConfigurationError

START_SECONDS = 60.0
STOP_SECONDS = 20.0
DURABLE: Final = ("fsync=on", "synchronous_commit=on", "full_page_writes=on")
LISTEN: Final = ("listen_addresses=", "log_min_messages=fatal")


class PostgresqlMissing(ConfigurationError):
    code = "postgresql_missing"
    remedy = "Install PostgreSQL: apt-get install postgresql."


def programs() -> Path:
    """Return the folder of the newest server that is installed. Raises `PostgresqlMissing`."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise PostgresqlMissing("PostgreSQL is not installed")
    return found[-1].parent


def as_user() -> dict[str, Any]:
    """Return what makes a child process run as a user that PostgreSQL accepts."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")  # PostgreSQL refuses to run as root
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@dataclass
class Server:
    """A server on its own data folder."""

    folder: Path
    options: Sequence[str]
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise PostgresqlMissing("the server was stopped")
        return self._process.pid

    def url(self, name: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://postgres@/{name}?host={self.folder}"

    def target(self, name: str = "postgres") -> str:
        """Return the libpq connection string of a database."""
        return f"host={self.folder} dbname={name} user=postgres"

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        """Return a connection in which each statement commits."""
        return psycopg.connect(self.target(name), autocommit=True)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        options = [part for option in (*LISTEN, *self.options) for part in ("-c", option)]
        self._process = subprocess.Popen(
            [programs() / "postgres", "-D", self.folder / "data", "-k", self.folder, *options],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **as_user(),
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.05)
            else:
                return
        raise PostgresqlMissing("the throw-away PostgreSQL cluster did not start")

    def kill(self) -> None:
        """Kill the server and all its processes at once, as `kill -9` does."""
        if self._process is None:
            return
        children = _children(self._process.pid)
        for pid in (self._process.pid, *children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        self._process = None
        deadline = time.monotonic() + STOP_SECONDS
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            if time.monotonic() > deadline:
                raise PostgresqlMissing("a process of the killed server did not end")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server at once; nothing in it is kept."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(child) for child in text.split()]


@contextmanager
def server(*options: str) -> Iterator[Server]:
    """Start a fresh server with these settings; end it by its process id and remove its data."""
    user = as_user()
    folder = Path(tempfile.mkdtemp(prefix="tg-pg-"))  # short: a socket path has 107 bytes
    if user:
        os.chown(folder, user["user"], user["group"])
    try:
        subprocess.run(
            [
                programs() / "initdb",
                *("-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"),
                *("--locale=C", "--no-sync", "--no-instructions"),
            ],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=START_SECONDS,
            **user,
        )
        running = Server(folder, options)
        try:
            running.start()
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
