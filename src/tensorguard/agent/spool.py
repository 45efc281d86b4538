"""Samples stay here until the platform has them. What is dropped or refused is counted, in the same commit.

For each priority, always: recorded + replayed = waiting + acknowledged + refused + dropped.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Final, Self

from tensorguard.agent import schema
from tensorguard.agent.records import Priority, Record
from tensorguard.agent.schema import SpoolUnavailable
from tensorguard.crypto.files import UnsafeFile

FILE: Final = "spool.db"
ROW_BYTES: Final = 40  # what a sample takes beside its text, measured
DEAD_SHARE: Final = 4  # dead letters may take a quarter of the bound
BATCH_SHARE: Final = 8  # what is on its way, and is never dropped, an eighth


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples on their way, under the key that they keep until they are settled."""

    key: str
    priority: Priority
    first: int
    last: int
    bodies: tuple[bytes, ...]

    @property
    def body(self) -> bytes:
        """Return the request's JSON: the same bytes every time."""
        return b'{"samples":[' + b",".join(self.bodies) + b"]}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a file has been imported; it is kept in the same commit as its samples."""

    digest: str
    path: str
    messages: int = 0
    samples: int = 0
    skipped: int = 0
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """What became of the samples of one priority."""

    waiting: int
    bytes: int
    recorded: int
    acknowledged: int
    refused: int
    dropped: int


class Spool:
    """The samples of one robot, in one file. Safe to use from several threads and processes."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        now_ns: Callable[[], int] = time.time_ns,
        new_key: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._max_bytes = max_bytes
        self._now_ns, self._new_key = now_ns, new_key
        self._lock = RLock()
        self._owed: dict[Priority, int] = {}  # dropped while nothing could be written
        try:
            flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o600))
        except OSError as error:
            raise UnsafeFile(f"{path} cannot be used: {error.strerror}") from error
        self._db = schema.connect(path)

    def close(self) -> None:
        """Close the file, after a last try to write what is owed."""
        with self._lock:
            if self._owed:
                with suppress(SpoolUnavailable):
                    self.put([])
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection; commit, durably, or change nothing. Raises `SpoolUnavailable`."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise schema.translated(error) from error
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def put(self, records: Sequence[Record], *, progress: Progress | None = None) -> None:
        """Keep records, dropping the oldest of the lowest priority when the bound is passed.

        Raises `SpoolUnavailable` when the disk takes nothing; then nothing was kept.
        """
        with self._lock:
            with self.transaction() as db:
                self._pay(db)
                self._keep(db, records)
                if progress is not None:
                    _save(db, progress)
                self._make_room(db)
            self._owed.clear()

    def _keep(self, db: sqlite3.Connection, records: Sequence[Record]) -> None:
        for priority in Priority:
            bodies = [one.body for one in records if one.priority == priority]
            if bodies:
                self.append(db, priority, bodies)
                db.execute(
                    "UPDATE level SET recorded = recorded + ? WHERE priority = ?",
                    (len(bodies), priority),
                )

    def _pay(self, db: sqlite3.Connection) -> None:
        for priority, count in self._owed.items():
            db.execute(
                "UPDATE level SET recorded = recorded + ?1, dropped = dropped + ?1 "
                "WHERE priority = ?2",
                (count, priority),
            )

    def put_or_drop(self, records: Sequence[Record]) -> None:
        """Keep records; when the disk takes nothing, count them as dropped as soon as it does."""
        try:
            self.put(records)
        except SpoolUnavailable:
            with self._lock:
                for one in records:
                    self._owed[one.priority] = self._owed.get(one.priority, 0) + 1

    @staticmethod
    def append(db: sqlite3.Connection, priority: Priority, bodies: Sequence[bytes]) -> None:
        """Add samples at the end of their priority, within a transaction."""
        first = db.execute("SELECT next FROM level WHERE priority = ?", (priority,)).fetchone()[0]
        db.executemany(
            "INSERT INTO sample VALUES (?, ?, ?)",
            [(priority, first + number, body) for number, body in enumerate(bodies)],
        )
        db.execute(
            "UPDATE level SET next = next + ?1, rows = rows + ?1, bytes = bytes + ?2 "
            "WHERE priority = ?3",
            (len(bodies), weight(bodies), priority),
        )

    def _make_room(self, db: sqlite3.Connection) -> None:
        held = db.execute("SELECT sum(bytes) FROM level").fetchone()[0]
        excess = held + tally(db, "dead_bytes") - self._max_bytes
        for priority in reversed(Priority):
            if excess <= 0:
                return
            excess -= _drop_oldest(db, priority, excess)

    def next_batch(self, *, rows: int, max_bytes: int) -> Batch | None:
        """Return what to send now: the most important open batch, or a new one; None if all is sent."""
        limit = min(max_bytes, self._max_bytes // BATCH_SHARE)
        with self.transaction() as db:
            for priority in Priority:
                open_batch = db.execute(
                    "SELECT key, first, last FROM batch WHERE priority = ? ORDER BY first LIMIT 1",
                    (priority,),
                ).fetchone()
                if open_batch is not None:
                    key, first, last = open_batch
                    return Batch(key, priority, first, last, _bodies(db, priority, first, last))
                waiting = db.execute(
                    "SELECT id, body FROM sample WHERE priority = ? ORDER BY id LIMIT ?",
                    (priority, rows),
                ).fetchall()
                if waiting:
                    return self._open(db, priority, _within(waiting, limit))
        return None

    def _open(
        self, db: sqlite3.Connection, priority: Priority, rows: Sequence[tuple[int, bytes]]
    ) -> Batch:
        bodies = tuple(body for _, body in rows)
        batch = Batch(self._new_key(), priority, rows[0][0], rows[-1][0], bodies)
        self._insert(db, batch)
        return batch

    def _insert(self, db: sqlite3.Connection, batch: Batch) -> None:
        row = (batch.key, batch.priority, batch.first, batch.last, self._now_ns())
        db.execute("INSERT INTO batch VALUES (?, ?, ?, ?, ?)", row)

    def settle(self, batch: Batch, refused: Mapping[int, tuple[str, str]]) -> None:
        """Forget a batch that the platform answered; `refused` maps an index to a code and a reason."""
        with self.transaction() as db:
            closed = db.execute("DELETE FROM batch WHERE key = ?", (batch.key,)).rowcount
            if closed != 1:
                return  # settled before
            span = (batch.priority, batch.first, batch.last)
            db.execute("DELETE FROM sample WHERE priority = ? AND id BETWEEN ? AND ?", span)
            db.execute(
                "UPDATE level SET rows = rows - ?, bytes = bytes - ?, "
                "acknowledged = acknowledged + ?, refused = refused + ? WHERE priority = ?",
                (
                    len(batch.bodies),
                    weight(batch.bodies),
                    len(batch.bodies) - len(refused),
                    len(refused),
                    batch.priority,
                ),
            )
            if refused:
                self._bury(db, batch, refused)

    def _bury(
        self, db: sqlite3.Connection, batch: Batch, refused: Mapping[int, tuple[str, str]]
    ) -> None:
        now = self._now_ns()
        dead = [
            (batch.priority, batch.bodies[index], code, reason, now)
            for index, (code, reason) in sorted(refused.items())
        ]
        db.executemany(
            "INSERT INTO dead (priority, body, code, reason, died) VALUES (?, ?, ?, ?, ?)", dead
        )
        add(db, "dead_rows", len(dead))
        add(db, "dead_bytes", weight([row[1] for row in dead]))
        excess = tally(db, "dead_bytes") - self._max_bytes // DEAD_SHARE
        if excess > 0:
            oldest = db.execute("SELECT id, body FROM dead ORDER BY id")
            count, freed, last = _until(oldest, excess)
            db.execute("DELETE FROM dead WHERE id <= ?", (last,))
            add(db, "dead_rows", -count)
            add(db, "dead_bytes", -freed)
            add(db, "dead_lost", count)

    def split(self, batch: Batch) -> None:
        """Make two batches of one, so that what is wrong with one sample harms no other."""
        ids = range(batch.first, batch.last + 1)
        middle = ids[len(ids) // 2]
        with self.transaction() as db:
            if db.execute("DELETE FROM batch WHERE key = ?", (batch.key,)).rowcount != 1:
                return
            for first, last in ((batch.first, middle - 1), (middle, batch.last)):
                self._insert(db, Batch(self._new_key(), batch.priority, first, last, ()))

    def count_unreadable(self, count: int) -> None:
        """Count lines that were no samples."""
        with self.transaction() as db:
            add(db, "unreadable", count)

    def note(self, name: str, text: str) -> None:
        """Keep a line for `tensorguard agent status`."""
        with self.transaction() as db:
            db.execute("REPLACE INTO note VALUES (?, ?, ?)", (name, text, self._now_ns()))

    def notes(self) -> dict[str, tuple[str, int]]:
        """Return the lines of `note` with their times."""
        with self.transaction() as db:
            return {name: (text, at) for name, text, at in db.execute("SELECT * FROM note")}

    def levels(self) -> dict[Priority, Level]:
        """Return the counts of each priority."""
        columns = "priority, rows, bytes, recorded, acknowledged, refused, dropped"
        with self.transaction() as db:
            rows = db.execute(f"SELECT {columns} FROM level").fetchall()  # noqa: S608 -- constants
        return {Priority(row[0]): Level(*row[1:]) for row in rows}

    def tallies(self) -> dict[str, int]:
        """Return the counts that have no priority."""
        with self.transaction() as db:
            return dict(db.execute("SELECT name, value FROM tally").fetchall())

    def waiting(self) -> int:
        """Return how many samples are not settled yet."""
        return sum(level.waiting for level in self.levels().values())

    def fill(self, bodies: Sequence[bytes] = ()) -> float:
        """Return how much of the bound is used, 1 being all, if `bodies` were put as well."""
        held = sum(level.bytes for level in self.levels().values()) + self.tallies()["dead_bytes"]
        return (held + weight(bodies)) / self._max_bytes

    def share(self, bodies: Sequence[bytes]) -> float:
        """Return how much of the bound `bodies` alone would use."""
        return weight(bodies) / self._max_bytes

    def progress(self, digest: str) -> Progress | None:
        """Return how far a file was imported, None if it never was."""
        with self.transaction() as db:
            row = db.execute(
                "SELECT path, messages, samples, skipped, finished FROM import WHERE digest = ?",
                (digest,),
            ).fetchone()
        if row is None:
            return None
        path, messages, samples, skipped, finished = row
        return Progress(digest, path, messages, samples, skipped, finished=bool(finished))


def weight(bodies: Sequence[bytes]) -> int:
    """Return the bytes that samples count for against the bound."""
    return sum(map(len, bodies)) + ROW_BYTES * len(bodies)


def tally(db: sqlite3.Connection, name: str) -> int:
    """Return one count."""
    value: int = db.execute("SELECT value FROM tally WHERE name = ?", (name,)).fetchone()[0]
    return value


def add(db: sqlite3.Connection, name: str, count: int) -> None:
    """Change one count."""
    db.execute("UPDATE tally SET value = value + ? WHERE name = ?", (count, name))


def _save(db: sqlite3.Connection, progress: Progress) -> None:
    row = (
        *(progress.digest, progress.path, progress.messages, progress.samples, progress.skipped),
        progress.finished,
    )
    db.execute("REPLACE INTO import VALUES (?, ?, ?, ?, ?, ?)", row)


def _bodies(db: sqlite3.Connection, priority: Priority, first: int, last: int) -> tuple[bytes, ...]:
    rows = db.execute(
        "SELECT body FROM sample WHERE priority = ? AND id BETWEEN ? AND ? ORDER BY id",
        (priority, first, last),
    )
    return tuple(body for (body,) in rows)


def _within(rows: Sequence[tuple[int, bytes]], limit: int) -> Sequence[tuple[int, bytes]]:
    used = 0
    for number, (_, body) in enumerate(rows):
        used += len(body) + ROW_BYTES
        if used > limit and number:
            return rows[:number]
    return rows


def _until(rows: Iterator[tuple[int, bytes]], excess: int) -> tuple[int, int, int]:
    """Return how many rows free `excess` bytes, the bytes that they free, and the last one's id."""
    count = freed = last = 0
    for last, body in rows:  # noqa: B007 -- it is returned
        count += 1
        freed += len(body) + ROW_BYTES
        if freed >= excess:
            break
    return count, freed, last


def _drop_oldest(db: sqlite3.Connection, priority: Priority, excess: int) -> int:
    sent = db.execute("SELECT max(last) FROM batch WHERE priority = ?", (priority,)).fetchone()[0]
    after = sent or 0  # what is on its way may be stored already: it is never dropped
    count, freed, last = _until(
        db.execute(
            "SELECT id, body FROM sample WHERE priority = ? AND id > ? ORDER BY id",
            (priority, after),
        ),
        excess,
    )
    if count:
        db.execute(
            "DELETE FROM sample WHERE priority = ? AND id > ? AND id <= ?", (priority, after, last)
        )
        db.execute(
            "UPDATE level SET rows = rows - ?1, bytes = bytes - ?2, dropped = dropped + ?1 "
            "WHERE priority = ?3",
            (count, freed, priority),
        )
    return freed
