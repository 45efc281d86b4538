"""A trail as JSON lines that anyone can verify without the platform (docs/formats/audit-export.md).

Writing and verifying take one pass and constant memory. An export proves nothing by itself: what
counts is that its events lead to heads that a trusted key signed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Final

from tensorguard.crypto import canonical
from tensorguard.crypto.trust import TrustStore
from tensorguard.errors import MalformedInput, TensorGuardError, VerificationError
from tensorguard.platform.audit.chain import AuditBroken, Event, Head, Walk
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.audit.service import open_head
from tensorguard.platform.db.tables.audit import AuditEvent, AuditHead

FORMAT: Final = "tensorguard-audit-export-1"
MAX_LINE: Final = 256 * 1024  # bytes; an event has under 36 KiB, a head under 16 KiB
PROGRESS_EVERY: Final = 1000  # events

Progress = Callable[[int], None]


class AuditUnsigned(VerificationError):
    code = "audit_unsigned"
    remedy = "Export again after a head was signed, or give a head that was kept with --head."


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found to hold. `signed` is the last event that a head covers; 0 without any."""

    tenant_id: str
    tenant: str
    events: int
    heads: int
    signed: int

    def as_dict(self) -> dict[str, object]:
        """Return the object that `tensorguard audit verify --json` prints."""
        return {
            "tenant_id": self.tenant_id,
            "tenant": self.tenant,
            "events": self.events,
            "heads": self.heads,
            "signed": self.signed,
            "result": "ok",
        }


def write(
    file: BinaryIO, trail: AuditRepository, *, tenant: str, now: datetime, progress: Progress
) -> int:
    """Write the trail of `tenant`, broken or not; return the number of events.

    The session must see one moment of the database.
    """
    end = trail.end()
    header = {"exported": now.isoformat(), "format": FORMAT, "seq": end.seq, "tenant": tenant}
    _line(file, {**header, "hash": end.hash, "tenant_id": trail.tenant_id, "type": "header"})
    heads = trail.heads()
    head = next(heads, None)
    count = 0
    for row in trail.events():
        _line(file, _event(row))
        count += 1
        while head is not None and head.seq <= row.seq:  # less: its own event was deleted
            head = _head(file, head, heads)
        if count % PROGRESS_EVERY == 0:
            progress(count)
    while head is not None:
        head = _head(file, head, heads)
    _line(file, {"events": count, "type": "end"})
    progress(count)
    return count


def _line(file: BinaryIO, value: dict[str, Any]) -> None:
    file.write(canonical.encode(value) + b"\n")


def _head(file: BinaryIO, head: AuditHead, rest: Iterator[AuditHead]) -> AuditHead | None:
    _line(file, {"envelope": head.envelope.decode(), "type": "head"})
    return next(rest, None)


def _event(row: AuditEvent) -> dict[str, Any]:
    # `details` goes out as the stored text: an edit that is not JSON any more is evidence, too.
    return {
        "action": row.action,
        "actor": row.actor,
        "details": row.details,
        "hash": row.hash,
        "previous": row.previous,
        "request_id": row.request_id,
        "seq": row.seq,
        "subject": row.subject,
        "time": row.time.isoformat(),
        "type": "event",
    }


def _lines(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if not raw.endswith(b"\n"):
            raise MalformedInput(f"line {number} is too long or not ended")
        value = canonical.decode(raw[:-1], limit=MAX_LINE)
        if not isinstance(value, dict):
            raise MalformedInput(f"line {number} is not an object")
        yield number, value


_HEADER: Final = {"exported", "format", "hash", "seq", "tenant", "tenant_id", "type"}
_EVENT: Final = {
    "action",
    "actor",
    "details",
    "hash",
    "previous",
    "request_id",
    "seq",
    "subject",
    "time",
    "type",
}


def verify(
    file: BinaryIO, *, trust: TrustStore, kept: Sequence[Head] = (), progress: Progress
) -> Verified:
    """Return what holds of an export. `kept` are verified heads that were kept elsewhere.

    Raises `AuditBroken` naming the event, `AuditUnsigned` when no head covers any event, or
    `MalformedInput`.
    """
    lines = _lines(file)
    # (1) the first line says whose trail this is
    _, header = next(lines, (0, {}))
    if header.keys() != _HEADER or header["format"] != FORMAT or header["type"] != "header":
        raise MalformedInput(f"the first line is not the header of a {FORMAT}")
    tenant_id = str(header["tenant_id"])
    walk = Walk(tenant_id, expected=kept)
    count = heads = signed = 0
    ended = False
    for number, value in lines:
        if ended:
            raise MalformedInput(f"line {number} follows the end")
        match value.get("type"):
            case "event":  # (2) each event follows the one before it
                event, stored = _read_event(value, number, tenant_id)
                walk.event(event, stored)
                count += 1
                if count % PROGRESS_EVERY == 0:
                    progress(count)
            case "head":  # (3) each head is trusted and names the event before it
                head = _read_head(value, number, count, trust)
                walk.head(head)
                heads, signed = heads + 1, head.seq
            case "end":
                ended = value == {"events": count, "type": "end"}
            case _:
                raise MalformedInput(f"line {number} is of no known type")
    # (4) nothing was cut off: neither the file, nor the trail before a head that was kept
    end = walk.end()
    if not ended or (end.seq, end.hash) != (header["seq"], header["hash"]):
        raise AuditBroken(
            f"the trail ends at event {end.seq}, not at event {header['seq']}", seq=end.seq + 1
        )
    # (5) a chain without any signature proves nothing
    signed = max([signed, *(head.seq for head in kept)])
    if signed == 0:
        raise AuditUnsigned("no signed head covers any event of this export")
    progress(count)
    return Verified(tenant_id, str(header["tenant"]), count, heads, signed)


def _read_event(value: dict[str, Any], number: int, tenant_id: str) -> tuple[Event, str]:
    seq = value.get("seq")
    if value.keys() != _EVENT or type(seq) is not int:
        raise MalformedInput(f"line {number} is not an event")
    if not all(isinstance(value[name], str) for name in _EVENT - {"seq"}):
        raise MalformedInput(f"line {number} is not an event")
    try:
        details = canonical.decode(value["details"].encode(), limit=MAX_LINE)
    except MalformedInput as error:
        raise AuditBroken(f"event {seq} was edited", seq=seq) from error
    event = Event(
        tenant_id=tenant_id,
        seq=seq,
        time=value["time"],
        actor=value["actor"],
        action=value["action"],
        subject=value["subject"],
        details=details,
        request_id=value["request_id"],
        previous=value["previous"],
    )
    return event, value["hash"]


def _read_head(value: dict[str, Any], number: int, count: int, trust: TrustStore) -> Head:
    if value.keys() != {"envelope", "type"} or not isinstance(value["envelope"], str):
        raise MalformedInput(f"line {number} is not a head")
    try:
        return open_head(value["envelope"].encode(), trust)
    except TensorGuardError as error:
        raise AuditBroken(
            f"the signed head after event {count} does not verify: {error}", seq=count
        ) from error
