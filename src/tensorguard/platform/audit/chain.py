"""The hash chain: every event covers all of its fields and the hash of the one before it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tensorguard.crypto import canonical
from tensorguard.errors import VerificationError

GENESIS: Final = "0" * 64
HEAD_TYPE: Final = "application/vnd.tensorguard.audit-head+json"
MAX_HEAD = 4096  # bytes of a head statement
MAX_DETAILS = 16_384  # bytes; the trail names things, it does not hold them

Detail = str | int | bool | None


class AuditBroken(VerificationError):
    """The trail was tampered with; `seq` is the first event that shows it."""

    code = "audit_broken"
    remedy = "Treat the trail as tampered with: keep the export and the database, and investigate."

    def __init__(self, detail: str, *, seq: int) -> None:
        super().__init__(detail)
        self.seq = seq


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a tenant's trail. `seq` counts from 1 without a gap; `time` is ISO 8601 UTC."""

    tenant_id: str
    seq: int
    time: str
    actor: str
    action: str
    subject: str
    details: Mapping[str, Detail]
    request_id: str
    previous: str

    def digest(self) -> str:
        """Return the hex SHA-256 over the canonical form of all fields."""
        fields = {
            "action": self.action,
            "actor": self.actor,
            "details": dict(self.details),
            "previous": self.previous,
            "request_id": self.request_id,
            "seq": self.seq,
            "subject": self.subject,
            "tenant_id": self.tenant_id,
            "time": self.time,
        }
        return hashlib.sha256(canonical.encode(fields)).hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """What a signed head says: how long the trail was, and its last hash, at a time."""

    tenant_id: str
    seq: int
    hash: str
    time: str

    def statement(self) -> bytes:
        """Return the canonical bytes that are signed."""
        return canonical.encode(
            {"hash": self.hash, "seq": self.seq, "tenant_id": self.tenant_id, "time": self.time}
        )


@dataclass(frozen=True, slots=True)
class End:
    """How far a trail goes: its last event and that event's hash."""

    seq: int
    hash: str


BEGIN: Final = End(0, GENESIS)


class Walk:
    """One pass over a trail, in order, in constant memory; it raises at what does not hold.

    Detects an edited field, a deleted or inserted event, and a deleted tail as far as a head was
    signed over it. Heads come right after the event that they name; `expected` are heads that were
    kept elsewhere. `after` goes on from an end that was checked before.
    """

    def __init__(
        self, tenant_id: str, *, expected: Iterable[Head] = (), after: End = BEGIN
    ) -> None:
        self._tenant_id = tenant_id
        self._end = after
        self._expected: dict[int, list[Head]] = {}
        for head in expected:
            self._expected.setdefault(head.seq, []).append(head)

    def event(self, event: Event, stored: str) -> None:
        """Step to the next event, given the hash that is stored of it. Raises `AuditBroken`."""
        seq = self._end.seq + 1
        if event.tenant_id != self._tenant_id:
            raise AuditBroken(f"event {seq} belongs to another tenant", seq=seq)
        if event.seq != seq:
            raise AuditBroken(f"event {seq} is missing; event {event.seq} follows", seq=seq)
        if event.previous != self._end.hash:
            raise AuditBroken(f"event {seq} does not follow the one before it", seq=seq)
        if event.digest() != stored:
            raise AuditBroken(f"event {seq} was edited", seq=seq)
        self._end = End(seq, stored)
        for head in self._expected.pop(seq, ()):
            self.head(head)

    def head(self, head: Head) -> None:
        """Compare a signed head with the event that was stepped to last. Raises `AuditBroken`."""
        if head.tenant_id != self._tenant_id:
            raise AuditBroken(f"the head of event {head.seq} is another tenant's", seq=head.seq)
        if head.seq > self._end.seq:
            raise AuditBroken(
                f"the trail ends at event {self._end.seq}, but event {head.seq} was signed",
                seq=self._end.seq + 1,
            )
        if head.seq != self._end.seq or head.hash != self._end.hash:
            raise AuditBroken(f"event {head.seq} is not the one that was signed", seq=head.seq)

    def end(self) -> End:
        """Return how far the trail goes. Raises `AuditBroken` when a head names a later event."""
        for seq in sorted(self._expected):
            for head in self._expected[seq]:
                self.head(head)
        return self._end


def verify(entries: Iterable[tuple[Event, str]], heads: Iterable[Head], *, tenant_id: str) -> End:
    """Return the end of an unbroken trail that reaches every signed head.

    `entries` are (event, stored hash) in order. Raises `AuditBroken`.
    """
    walk = Walk(tenant_id, expected=heads)
    for event, stored in entries:
        walk.event(event, stored)
    return walk.end()
