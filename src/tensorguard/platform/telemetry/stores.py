"""How a group of batches reaches each database, inside the caller's transaction.

PostgreSQL: binary COPY, and only when a sample is there already, the whole anew with an INSERT that
skips what exists (a COPY of 500 rows takes 0.7 of the INSERT's time, one of 10,000 rows 0.4).
Partitions are attached, which does not lock out other writers. SQLite: prepared statements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from tensorguard.errors import TooLarge, Unavailable
from tensorguard.platform.db.tables.telemetry import IngestBatch
from tensorguard.platform.db.upsert import insert_if_absent
from tensorguard.platform.telemetry.cache import KnownDays
from tensorguard.platform.telemetry.points import Document
from tensorguard.platform.telemetry.rows import DAY, Rows, copy_bytes

PARTITION_LOCK = 0x54_47_44_41_59  # "TGDAY": one process makes partitions at a time
MAX_NEW_PARTITIONS = 64  # of one batch; the span of time that is taken by default has 32 days
SAMPLES, DOCUMENTS = "sample", "document"

_COPY = sql.SQL("COPY sample FROM STDIN (FORMAT BINARY)")
_INSERT = (
    "INSERT INTO sample (series_id, ts, value) "
    "SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::double precision[]) "
    "ON CONFLICT DO NOTHING RETURNING series_id, ts"
)
_INSERT_DOCUMENTS = (
    "INSERT INTO document (series_id, ts, value) "
    "SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::text[]) "
    "ON CONFLICT DO NOTHING RETURNING series_id, ts"
)
_LATEST = (
    "INSERT INTO latest (series_id, ts, value) "
    "SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::double precision[]) "
    "ON CONFLICT (series_id) DO UPDATE SET ts = excluded.ts, value = excluded.value "
    "WHERE excluded.ts > latest.ts"
)
_CLAIM = (
    "INSERT INTO ingest_batch (tenant_id, principal, key, body, accepted, rejected, received, "
    "duplicates, rejections) SELECT *, %b::timestamptz, 0, '[]' FROM "
    "unnest(%b::text[], %b::text[], %b::bytea[], %b::bytea[], %b::bigint[], %b::bigint[]) "
    "ON CONFLICT DO NOTHING RETURNING tenant_id, principal, key"
)
_SQLITE_INSERT = "INSERT INTO {} (series_id, ts, value) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_SQLITE_LATEST = (
    "INSERT INTO latest (series_id, ts, value) VALUES (?, ?, ?) "
    "ON CONFLICT (series_id) DO UPDATE SET ts = excluded.ts, value = excluded.value "
    "WHERE excluded.ts > latest.ts"
)


class StorageBusy(Unavailable):
    code = "storage_busy"
    remedy = "Send the same batch again, with the same key, after the time given in Retry-After."


class Overlap(Exception):
    """Some of the rows are there already."""


class TooManyDays(TooLarge):
    code = "too_many_days"
    remedy = "Send the samples in batches of fewer days, in order of time."


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch that wants to be the one with its key, and the answer that it expects."""

    tenant_id: str
    principal: str
    key: bytes
    body: bytes
    accepted: int
    rejected: int

    @property
    def identity(self) -> tuple[str, str, bytes]:
        """What only one batch may have."""
        return self.tenant_id, self.principal, self.key


class SampleStore(Protocol):
    """Writes rows and moves the newest values forward."""

    def prepare(self, session: Session, table: str, days: list[int]) -> None:
        """Make room for days that have no samples yet."""

    def claim(
        self, session: Session, claims: Sequence[Claim], now: datetime
    ) -> set[tuple[str, str, bytes]]:
        """Take the batches that nobody took before, in order; wait for those in flight."""

    def insert(self, session: Session, rows: Rows, *, careful: bool) -> Rows:
        """Insert the rows that are not there; return them.

        Raises `Overlap` unless `careful`, when some are there: the transaction is to begin anew.
        """

    def insert_documents(
        self, session: Session, documents: Sequence[Document]
    ) -> set[tuple[int, int]]:
        """Insert the values that are not there; return their series and times."""

    def advance(self, session: Session, newest: Rows) -> None:
        """Set the newest values where the rows are newer."""


def partition_name(day: int, table: str = SAMPLES) -> str:
    """Return the name of the partition of one day since 1970."""
    return f"{table}_p{datetime.fromtimestamp(day * 86_400, UTC):%Y%m%d}"


class PostgresSamples:
    """Binary COPY through psycopg 3."""

    def __init__(self, known: Sequence[KnownDays]) -> None:
        self._known = known

    def prepare(self, session: Session, table: str, days: list[int]) -> None:
        """Attach the partitions that are missing, under a lock of this transaction."""
        connection = session.connection()
        if len(days) > MAX_NEW_PARTITIONS:
            raise TooManyDays(f"a batch may open at most {MAX_NEW_PARTITIONS} new days")
        with _translated(self._known):
            connection.execute(text(f"SELECT pg_advisory_xact_lock({PARTITION_LOCK})"))
            for day in days:
                name = partition_name(day, table)
                if connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is None:
                    _attach(connection, table, name, day)

    def claim(
        self, session: Session, claims: Sequence[Claim], now: datetime
    ) -> set[tuple[str, str, bytes]]:
        """Take the batches that nobody took before, in order; wait for those in flight."""
        columns = [
            [claim.tenant_id for claim in claims],
            [claim.principal for claim in claims],
            [claim.key for claim in claims],
            [claim.body for claim in claims],
            [claim.accepted for claim in claims],
            [claim.rejected for claim in claims],
        ]
        driver = _driver(session.connection())
        with _translated(self._known), driver.pipeline(), driver.cursor() as cursor:  # with BEGIN
            rows = cursor.execute(_CLAIM, [now, *columns], binary=True).fetchall()
        return {(tenant, principal, bytes(key)) for tenant, principal, key in rows}

    def insert(self, session: Session, rows: Rows, *, careful: bool) -> Rows:
        """Insert the rows that are not there; return them."""
        with _translated(self._known), _driver(session.connection()).cursor() as cursor:
            if careful:
                return rows.only(cursor.execute(_INSERT, rows.columns()).fetchall())
            try:
                with cursor.copy(_COPY) as copy:
                    copy.write(copy_bytes(rows))
            except psycopg.errors.UniqueViolation as error:
                raise Overlap from error
            return rows

    def insert_documents(
        self, session: Session, documents: Sequence[Document]
    ) -> set[tuple[int, int]]:
        """Insert the values that are not there; return their series and times."""
        columns = [list(column) for column in zip(*sorted(documents), strict=True)]
        with _translated(self._known), _driver(session.connection()).cursor() as cursor:
            return set(cursor.execute(_INSERT_DOCUMENTS, columns).fetchall())

    def advance(self, session: Session, newest: Rows) -> None:
        """Set the newest values where the rows are newer."""
        with _translated(self._known), _driver(session.connection()).cursor() as cursor:
            cursor.execute(_LATEST, newest.columns())


class SqliteSamples:
    """One prepared statement for all rows."""

    def prepare(self, session: Session, table: str, days: list[int]) -> None:
        """Do nothing: there are no partitions."""

    def claim(
        self, session: Session, claims: Sequence[Claim], now: datetime
    ) -> set[tuple[str, str, bytes]]:
        """Take the batches that nobody took before."""
        taken = set()
        for claim in claims:
            values = {
                "tenant_id": claim.tenant_id,
                "principal": claim.principal,
                "key": claim.key,
                "body": claim.body,
                "received": now,
                "accepted": claim.accepted,
                "duplicates": 0,
                "rejected": claim.rejected,
                "rejections": "[]",
            }
            if insert_if_absent(session, IngestBatch, values):
                taken.add(claim.identity)
        return taken

    def insert(self, session: Session, rows: Rows, *, careful: bool) -> Rows:
        """Insert the rows that are not there; return them."""
        parameters = list(zip(*rows.columns(), strict=True))
        statement = _SQLITE_INSERT.format(SAMPLES)
        connection = session.connection()
        if careful:
            new = [
                pair[:2]
                for pair in parameters
                if connection.exec_driver_sql(statement, pair).rowcount == 1
            ]
            return rows.only(new)
        if connection.exec_driver_sql(statement, parameters).rowcount != len(rows):
            raise Overlap
        return rows

    def insert_documents(
        self, session: Session, documents: Sequence[Document]
    ) -> set[tuple[int, int]]:
        """Insert the values that are not there; return their series and times."""
        statement = _SQLITE_INSERT.format(DOCUMENTS)
        connection = session.connection()
        return {
            (series, time)
            for series, time, value in documents
            if connection.exec_driver_sql(statement, (series, time, value)).rowcount == 1
        }

    def advance(self, session: Session, newest: Rows) -> None:
        """Set the newest values where the rows are newer."""
        parameters = list(zip(*newest.columns(), strict=True))
        session.connection().exec_driver_sql(_SQLITE_LATEST, parameters)


def _driver(connection: Connection) -> psycopg.Connection:
    return cast("psycopg.Connection", connection.connection.driver_connection)


def _attach(connection: Connection, parent: str, name: str, day: int) -> None:
    with _driver(connection).cursor() as cursor:
        whole, table = sql.Identifier(parent), sql.Identifier(name)
        cursor.execute(sql.SQL("CREATE TABLE {} (LIKE {})").format(table, whole))
        cursor.execute(
            sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
                whole, table, sql.Literal(day * DAY), sql.Literal((day + 1) * DAY)
            )
        )


@contextmanager
def _translated(known: Sequence[KnownDays]) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.CheckViolation as error:  # a partition was dropped behind our back
        for days in known:
            days.clear()
        raise StorageBusy("the storage of that day was removed", retry_after=1) from error
    except psycopg.OperationalError as error:
        raise StorageBusy("the database did not take the samples") from error
