"""A throw-away PostgreSQL cluster for tests: databases from templates, emptied between tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import psycopg
from psycopg import sql

from tensorguard.bench.postgresql import Server, server

OPTIONS = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "max_connections=60",
    "shared_buffers=32MB",
    "autovacuum=off",
)


VERSION = "alembic_version"
Shape = list[tuple[object, ...]]


@dataclass
class Cluster:
    """A running server; it makes databases from templates."""

    server: Server
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, name: str) -> str:
        """Return the SQLAlchemy URL of a database."""
        return self.server.url(name)

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        """Return a connection in which each statement commits."""
        return self.server.connect(name)

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


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a cluster; end it by its process id."""
    with server(*OPTIONS) as running:
        yield Cluster(running)
