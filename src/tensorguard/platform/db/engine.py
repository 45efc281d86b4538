"""How the platform opens its database: bounded waits on PostgreSQL, WAL and real locks on SQLite."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError

from tensorguard.errors import ConfigurationError
from tensorguard.settings import Settings, default_home

CONNECT_SECONDS = 3  # a gate must speak within 5 seconds
BUSY_MILLISECONDS = 10_000
STATEMENT_MILLISECONDS = 30_000
LOCK_MILLISECONDS = 10_000


class DatabaseUrlUnusable(ConfigurationError):
    code = "database_url"
    remedy = "Set DATABASE_URL to postgresql+psycopg://USER:PASSWORD@HOST/NAME."


def database_url(settings: Settings) -> str:
    """Return `DATABASE_URL`, or in development the SQLite file under `TG_HOME`."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    if settings.production:
        raise DatabaseUrlUnusable("DATABASE_URL is not set")
    home = settings.home or default_home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return f"sqlite+pysqlite:///{home / 'platform.db'}"


def open_engine(settings: Settings) -> Engine:
    """Return the engine of `settings`. Raises `DatabaseUrlUnusable`."""
    return engine_for(database_url(settings))


def engine_for(url: str) -> Engine:
    """Return an engine for `url`: PostgreSQL through psycopg 3, or SQLite."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseUrlUnusable("DATABASE_URL is not a SQLAlchemy URL") from error
    if parsed.drivername == "postgresql+psycopg":
        options = (
            f"-c statement_timeout={STATEMENT_MILLISECONDS} -c lock_timeout={LOCK_MILLISECONDS} "
            "-c timezone=UTC"
        )
        return create_engine(
            parsed,
            pool_pre_ping=True,
            pool_size=10,
            max_overflow=20,
            pool_timeout=5,
            connect_args={"connect_timeout": CONNECT_SECONDS, "options": options},
            hide_parameters=True,
        )
    if parsed.drivername in {"sqlite", "sqlite+pysqlite"}:
        engine = create_engine(
            parsed,
            connect_args={"timeout": BUSY_MILLISECONDS / 1000, "check_same_thread": False},
            hide_parameters=True,
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        if parsed.database:
            _keep_private(Path(parsed.database))
        return engine
    raise DatabaseUrlUnusable(f"DATABASE_URL names {parsed.drivername}, which is not supported")


def _keep_private(path: Path) -> None:
    if path.parent.is_dir():
        path.touch(mode=0o600, exist_ok=True)


def _prepare_sqlite(connection: DBAPIConnection, _record: Any) -> None:
    if not isinstance(connection, sqlite3.Connection):
        return
    connection.isolation_level = None  # SQLAlchemy begins; the driver must not
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_MILLISECONDS}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    # Writers queue at BEGIN: a transaction that reads first can never fail at its first write.
    read_only = connection.get_execution_options().get("tensorguard_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
