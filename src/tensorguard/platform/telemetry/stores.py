"""How samples reach each database, inside the caller's transaction.

PostgreSQL: binary COPY, and only when a sample is there already, an INSERT that skips what exists
(a COPY of 500 rows takes 0.7 of the INSERT's time, one of 10,000 rows 0.4). Partitions are attached,
which does not lock out other writers. SQLite: one prepared statement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from tensorguard.errors import TooLarge, Unavailable
from tensorguard.platform.telemetry.cache import KnownDays
from tensorguard.platform.telemetry.rows import DAY, Rows, copy_bytes

PARTITION_LOCK = 0x54_47_44_41_59  # "TGDAY": one process makes partitions at a time
MAX_NEW_PARTITIONS = 64  # of one batch; the span of time that is taken by default has 32 days

_INSERT = (
    "INSERT INTO sample (series_id, ts, value) "
    "SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::double precision[]) "
    "ON CONFLICT DO NOTHING"
)
_LATEST = (
    "INSERT INTO latest (series_id, ts, value) "
    "SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::double precision[]) "
    "ON CONFLICT (series_id) DO UPDATE SET ts = excluded.ts, value = excluded.value "
    "WHERE excluded.ts > latest.ts"
)
_SQLITE_INSERT = "INSERT INTO sample (series_id, ts, value) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_SQLITE_LATEST = (
    "INSERT INTO latest (series_id, ts, value) VALUES (?, ?, ?) "
    "ON CONFLICT (series_id) DO UPDATE SET ts = excluded.ts, value = excluded.value "
    "WHERE excluded.ts > latest.ts"
)


class StorageBusy(Unavailable):
    code = "storage_busy"
    remedy = "Send the same batch again, with the same key, after the time given in Retry-After."


class TooManyDays(TooLarge):
    code = "too_many_days"
    remedy = "Send the samples in batches of fewer days, in order of time."


class SampleStore(Protocol):
    """Writes rows and moves the newest values forward."""

    def prepare(self, session: Session, days: list[int]) -> None:
        """Make room for days that have no samples yet."""

    def insert(self, session: Session, rows: Rows) -> int:
        """Insert the rows that are not there; return how many."""

    def advance(self, session: Session, newest: Rows) -> None:
        """Set the newest values where the rows are newer."""


def partition_name(day: int) -> str:
    """Return the name of the partition of one day since 1970."""
    return f"sample_p{datetime.fromtimestamp(day * 86_400, UTC):%Y%m%d}"


class PostgresSamples:
    """Binary COPY through psycopg 3."""

    def __init__(self, known: KnownDays) -> None:
        self._known = known

    def prepare(self, session: Session, days: list[int]) -> None:
        """Attach the partitions that are missing, under a lock of this transaction."""
        connection = session.connection()
        if len(days) > MAX_NEW_PARTITIONS:
            raise TooManyDays(f"a batch may open at most {MAX_NEW_PARTITIONS} new days")
        with _translated(self._known):
            connection.execute(text(f"SELECT pg_advisory_xact_lock({PARTITION_LOCK})"))
            for day in days:
                name = partition_name(day)
                if connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is None:
                    _attach(connection, name, day)

    def insert(self, session: Session, rows: Rows) -> int:
        """Insert the rows that are not there; return how many."""
        connection = session.connection()
        with _translated(self._known):
            try:
                with connection.begin_nested(), _driver(connection).cursor() as cursor:
                    with cursor.copy("COPY sample FROM STDIN (FORMAT BINARY)") as copy:
                        copy.write(copy_bytes(rows))
                    return len(rows)
            except psycopg.errors.UniqueViolation:
                with _driver(connection).cursor() as cursor:
                    return cursor.execute(_INSERT, rows.columns()).rowcount

    def advance(self, session: Session, newest: Rows) -> None:
        """Set the newest values where the rows are newer."""
        with _translated(self._known), _driver(session.connection()).cursor() as cursor:
            cursor.execute(_LATEST, newest.columns())


class SqliteSamples:
    """One prepared statement for all rows."""

    def prepare(self, session: Session, days: list[int]) -> None:
        """Do nothing: there are no partitions."""

    def insert(self, session: Session, rows: Rows) -> int:
        """Insert the rows that are not there; return how many."""
        parameters = list(zip(*rows.columns(), strict=True))
        return session.connection().exec_driver_sql(_SQLITE_INSERT, parameters).rowcount

    def advance(self, session: Session, newest: Rows) -> None:
        """Set the newest values where the rows are newer."""
        parameters = list(zip(*newest.columns(), strict=True))
        session.connection().exec_driver_sql(_SQLITE_LATEST, parameters)


def _driver(connection: Connection) -> psycopg.Connection:
    return cast("psycopg.Connection", connection.connection.driver_connection)


def _attach(connection: Connection, name: str, day: int) -> None:
    with _driver(connection).cursor() as cursor:
        table = sql.Identifier(name)
        cursor.execute(sql.SQL("CREATE TABLE {} (LIKE sample)").format(table))
        cursor.execute(
            sql.SQL("ALTER TABLE sample ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
                table, sql.Literal(day * DAY), sql.Literal((day + 1) * DAY)
            )
        )


@contextmanager
def _translated(known: KnownDays) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.CheckViolation as error:  # a partition was dropped behind our back
        known.clear()
        raise StorageBusy("the storage of that day was removed", retry_after=1) from error
    except psycopg.OperationalError as error:
        raise StorageBusy("the database did not take the samples") from error
