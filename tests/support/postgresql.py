"""A throw-away PostgreSQL cluster on a Unix socket, run as `postgres` when the tests run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql

START_SECONDS = 60.0
STOP_SECONDS = 20.0
OPTIONS = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "listen_addresses=",
    "max_connections=60",
    "shared_buffers=32MB",
    "autovacuum=off",
    "log_min_messages=fatal",
)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent


def _as_user() -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")  # PostgreSQL refuses to run as root
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


VERSION = "alembic_version"
Shape = list[tuple[object, ...]]


@dataclass
class Cluster:
    """A running server; it makes databases from templates."""

    sockets: Path
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, name: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://postgres@/{name}?host={self.sockets}"

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        """Return a connection in which each statement commits."""
        target = f"host={self.sockets} dbname={name} user=postgres"
        return psycopg.connect(target, autocommit=True)

    def _run(self, statement: sql.Composed) -> None:
        with self.connect() as connection:
            connection.execute(statement)

    def create(self, template: str = "template0") -> str:
        """Make a database from a template and return its name."""
        name = f"t{next(self._numbers)}"
        self._run(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        return name

    def drop(self, name: str) -> None:
        """Remove a database and whoever is still connected to it."""
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def empty(self, name: str, *, shape: Shape) -> bool:
        """Remove every row of a database; False when a test changed its tables."""
        with self.connect(name) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            if self.shape(connection) != shape:
                return False
            tables = [name for name, kind, *_ in shape if kind in "rp" and name != VERSION]
            filled = [t for t in tables if _has_rows(connection, t)]
            if filled:
                names = sql.SQL(", ").join(map(sql.Identifier, filled))
                statement = sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(names)
                connection.execute(statement)
            version = sql.SQL("SELECT version_num FROM {}").format(sql.Identifier(VERSION))
            return len(connection.execute(version).fetchall()) == 1

    @staticmethod
    def shape(connection: psycopg.Connection) -> Shape:
        """Return every relation, its columns and constraints, as PostgreSQL lists them."""
        return connection.execute(
            "SELECT relname, relkind::text, relnatts, relchecks, relhastriggers, "
            "(SELECT string_agg(conname, ',' ORDER BY conname) FROM pg_constraint "
            "WHERE conrelid = c.oid) FROM pg_class c "
            "WHERE relnamespace = 'public'::regnamespace ORDER BY relname"
        ).fetchall()


def _has_rows(connection: psycopg.Connection, table: str) -> bool:
    query = sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(table))
    return connection.execute(query).fetchone() is not None


def _wait(server: subprocess.Popen[bytes], sockets: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            psycopg.connect(f"host={sockets} dbname=postgres user=postgres").close()
        except psycopg.OperationalError:
            if server.poll() is not None:
                break
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the PostgreSQL cluster of the tests did not start")


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a cluster; end it by its process id."""
    programs = _programs()
    user = _as_user()
    folder = Path(tempfile.mkdtemp(prefix="tg-pg-"))  # short: a socket path has 107 bytes
    if user:
        os.chown(folder, user["user"], user["group"])
    try:
        subprocess.run(
            [
                programs / "initdb",
                *("-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"),
                *("--locale=C", "--no-sync", "--no-instructions"),
            ],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=START_SECONDS,
            **user,
        )
        options = [part for option in OPTIONS for part in ("-c", option)]
        server = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", "-k", folder, *options],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **user,
        )
        try:
            _wait(server, folder)
            yield Cluster(folder)
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing in it is kept
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
