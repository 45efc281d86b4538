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
    code = "audit_broken"
    remedy = "Treat the trail as tampered with: keep the export and the database, and investigate."


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


def verify(entries: Iterable[tuple[Event, str]], heads: Iterable[Head], *, tenant_id: str) -> int:
    """Return the number of events of an unbroken trail that reaches every signed head.

    `entries` are (event, stored hash) in order. Detects an edited field, a deleted or inserted
    event, and a deleted tail as far as a head was signed over it. Raises `AuditBroken`.
    """
    expected = {head.seq: head for head in heads}
    previous, length = GENESIS, 0
    for event, stored in entries:
        length += 1
        if event.tenant_id != tenant_id:
            raise AuditBroken(f"event {length} belongs to another tenant")
        if event.seq != length:
            raise AuditBroken(f"event {length} is missing; event {event.seq} follows")
        if event.previous != previous:
            raise AuditBroken(f"event {length} does not follow the one before it")
        if event.digest() != stored:
            raise AuditBroken(f"event {length} was edited")
        head = expected.pop(length, None)
        if head is not None and (head.hash != stored or head.tenant_id != tenant_id):
            raise AuditBroken(f"event {length} is not the one that was signed")
        previous = stored
    if expected:
        longest = max(expected)
        raise AuditBroken(f"the trail ends at event {length}, but event {longest} was signed")
    return length
