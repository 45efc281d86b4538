"""The agent's dead letters: samples that the platform refused for good, kept until somebody decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tensorguard.agent.records import Priority
from tensorguard.agent.spool import Spool, add, weight
from tensorguard.errors import NotFound

PAGE: Final = 500


class SubmissionUnknown(NotFound):
    code = "submission_not_found"
    remedy = "List the submissions again; it was replayed or dropped meanwhile."


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One refused sample: its JSON, why it was refused and when (nanoseconds since 1970)."""

    id: int
    priority: Priority
    body: bytes
    code: str
    reason: str
    died: int


def letters(spool: Spool, *, after: int = 0) -> Iterator[DeadLetter]:
    """Yield the dead letters in the order of their deaths."""
    while True:
        with spool.transaction() as db:
            rows = db.execute(
                "SELECT id, priority, body, code, reason, died FROM dead "
                "WHERE id > ? ORDER BY id LIMIT ?",
                (after, PAGE),
            ).fetchall()
        for number, priority, *rest in rows:
            yield DeadLetter(number, Priority(priority), *rest)
        if len(rows) < PAGE:
            return
        after = rows[-1][0]


def letter(spool: Spool, number: int) -> DeadLetter:
    """Return one dead letter. Raises `SubmissionUnknown`."""
    found = next(letters(spool, after=number - 1), None)
    if found is None or found.id != number:
        raise SubmissionUnknown(f"there is no submission {number}")
    return found


def replay(spool: Spool, numbers: Sequence[int]) -> int:
    """Put samples back among those to be sent; return how many. Raises `SubmissionUnknown`."""
    return _take(spool, numbers, tally="replayed", again=True)


def drop(spool: Spool, numbers: Sequence[int]) -> int:
    """Delete samples and count them; return how many. Raises `SubmissionUnknown`."""
    return _take(spool, numbers, tally="discarded", again=False)


def _take(spool: Spool, numbers: Sequence[int], *, tally: str, again: bool) -> int:
    with spool.transaction() as db:
        for number in numbers:
            row = db.execute("SELECT priority, body FROM dead WHERE id = ?", (number,)).fetchone()
            if row is None:
                raise SubmissionUnknown(f"there is no submission {number}")
            priority, body = row
            db.execute("DELETE FROM dead WHERE id = ?", (number,))
            add(db, "dead_rows", -1)
            add(db, "dead_bytes", -weight([body]))
            if again:
                spool.append(db, Priority(priority), [body])
        add(db, tally, len(numbers))
    return len(numbers)
