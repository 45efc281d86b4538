"""The spool's tables. A robot's power fails at any time: every commit is on the disk when it returns.

`sample` holds what waits, in order within a priority. A `batch` is a range of it that got its key
before it was first sent, so that a retry after any crash is the same request. `level` counts, per
priority, everything that ever happened; `tally` counts what has no priority.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from tensorguard.agent.records import Priority
from tensorguard.errors import ConfigurationError, Unavailable

VERSION: Final = 1
PAGE: Final = 4096
BUSY_SECONDS: Final = 30.0  # another process of this robot writes
TALLIES: Final = ("unreadable", "replayed", "discarded", "dead_rows", "dead_bytes", "dead_lost")
BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
NO_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
BROKEN: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
    }
)

TABLES: Final = """
CREATE TABLE sample (
    priority INTEGER NOT NULL, id INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (priority, id)
) WITHOUT ROWID;
CREATE TABLE batch (
    key TEXT PRIMARY KEY, priority INTEGER NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL, made INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE level (
    priority INTEGER PRIMARY KEY, next INTEGER NOT NULL DEFAULT 1,
    rows INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,
    recorded INTEGER NOT NULL DEFAULT 0, acknowledged INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT, priority INTEGER NOT NULL, body BLOB NOT NULL,
    code TEXT NOT NULL, reason TEXT NOT NULL, died INTEGER NOT NULL
);
CREATE TABLE tally (name TEXT PRIMARY KEY, value INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE import (
    digest TEXT PRIMARY KEY, path TEXT NOT NULL, messages INTEGER NOT NULL,
    samples INTEGER NOT NULL, skipped INTEGER NOT NULL, finished INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE note (name TEXT PRIMARY KEY, text TEXT NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
"""


class SpoolUnavailable(Unavailable):
    code = "spool_unavailable"
    remedy = "Make room on the disk of the agent's folder; the agent goes on by itself."


class SpoolUnusable(ConfigurationError):
    code = "spool_unusable"
    remedy = (
        "Move spool.db away (keep it: what was not delivered is in it) and start the agent again."
    )


def translated(error: sqlite3.Error) -> SpoolUnavailable | SpoolUnusable:
    """Return our error for one of SQLite's."""
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
    if kind in BROKEN:
        return SpoolUnusable(f"the spool cannot be used: {error}")
    if kind in BUSY:
        return SpoolUnavailable(f"another process holds the spool for over {BUSY_SECONDS:.0f} s")
    if kind in NO_ROOM:
        return SpoolUnavailable(f"the disk takes no more: {error}")
    return SpoolUnusable(f"the spool does not work: {error}")


def connect(path: Path) -> sqlite3.Connection:
    """Open the spool, making its tables if it is new. Raises `SpoolUnavailable`, `SpoolUnusable`."""
    db = None
    try:
        db = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        found = _prepare(db)
    except sqlite3.Error as error:
        if db is not None:
            db.close()
        raise translated(error) from error
    if found not in {0, VERSION}:
        db.close()
        raise SpoolUnusable(f"{path} has version {found} of the spool, not {VERSION}")
    return db


def _prepare(db: sqlite3.Connection) -> int:
    db.execute(f"PRAGMA page_size = {PAGE}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA cache_size = -4096")  # KiB; a robot has little memory to spare
    db.execute("PRAGMA journal_size_limit = 8388608")
    db.execute("BEGIN IMMEDIATE")
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    if found == 0:
        _create(db)
    db.execute("COMMIT")
    return found


def _create(db: sqlite3.Connection) -> None:
    for statement in TABLES.split(";"):
        if statement.strip():
            db.execute(statement)
    db.executemany("INSERT INTO level (priority) VALUES (?)", [(int(one),) for one in Priority])
    db.executemany("INSERT INTO tally (name) VALUES (?)", [(name,) for name in TALLIES])
    db.execute(f"PRAGMA user_version = {VERSION}")
