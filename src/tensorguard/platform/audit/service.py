"""Signed heads: the end of each trail, signed by a key that whoever edits the database does not have.

How the use of that key is itself recorded. A signature over a head is a use of a key, and every use
of a key is audited; were it an event, the chain would move with each signature and would have to be
signed again, forever. So the stored head *is* the record of its signature: its envelope names the
key, the time and the event, and it cannot be removed unnoticed while a later head or a copy of it
exists. What a person asked for is an event as well (`audit.head_requested`), appended before the
signature and therefore covered by it; the periodic task appends none. The price: a head that was
deleted together with the tail it covers is missed by no event; keep heads elsewhere, too
(`GET /api/v1/audit/heads`, `tensorguard audit verify --head`).

Before a head is signed, the events since the last head are checked: a trail that was tampered with
is never signed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from sqlalchemy.orm import Session

from tensorguard.crypto import canonical, dsse
from tensorguard.crypto.trust import TrustStore
from tensorguard.errors import MalformedInput, TensorGuardError
from tensorguard.keys.provider import Algorithm, KeyProvider, KeyState, Purpose, key_id
from tensorguard.keys.signers import ensure, seal
from tensorguard.platform.audit.chain import (
    BEGIN,
    HEAD_TYPE,
    MAX_HEAD,
    AuditBroken,
    End,
    Head,
    Walk,
)
from tensorguard.platform.audit.repository import AuditRepository, event_of
from tensorguard.platform.db.tables.audit import AuditHead
from tensorguard.platform.principal import Principal

HEAD_KEY: Final = key_id("audit-head")


class NothingToSign(TensorGuardError):
    code = "audit_empty"
    status = 409
    remedy = "Sign the head after the first event."


def sign_head(
    session: Session, tenant_id: str, *, keys: KeyProvider, now: datetime
) -> AuditHead | None:
    """Sign the end of a trail unless that is done; None for a trail without events.

    Raises `AuditBroken` when the events since the last head do not hold.
    """
    trail = AuditRepository(session, tenant_id=tenant_id)
    end = trail.end()
    last = trail.last_head()
    if last is not None and last.seq == end.seq and last.hash == end.hash:
        return last
    if end == BEGIN and last is None:
        return None
    # (1) the last head is one that this key signed, so that checking can go on from it
    checked = _opened_end(last, trust_of(keys), tenant_id) if last else BEGIN
    # (2) the events since then are an unbroken chain that ends where the chain's row says
    walk = Walk(tenant_id, after=checked)
    for row in trail.events(after=checked.seq):
        walk.event(event_of(row), row.hash)
        if row.seq == end.seq:
            break
    if walk.end() != end:
        seq = walk.end().seq + 1
        raise AuditBroken(f"the trail does not reach event {end.seq}, its end", seq=seq)
    # (3) sign it
    head = Head(tenant_id, end.seq, end.hash, now.astimezone(UTC).isoformat())
    ensure(keys, HEAD_KEY, Algorithm.hybrid, Purpose.audit_head)
    envelope = seal(
        keys, HEAD_KEY, head.statement(), payload_type=HEAD_TYPE, purpose=Purpose.audit_head
    )
    return trail.add_head(head, time=now, envelope=envelope)


def request_head(
    session: Session, principal: Principal, *, keys: KeyProvider, now: datetime
) -> AuditHead:
    """Sign the end of the caller's trail now; the request itself is the last event signed."""
    AuditRepository(session, tenant_id=principal.tenant_id).append(
        actor=principal.actor, action="audit.head_requested", subject=f"key:{HEAD_KEY}", now=now
    )
    head = sign_head(session, principal.tenant_id, keys=keys, now=now)
    if head is None:
        raise NothingToSign("the trail has no event")
    return head


def trust_of(keys: KeyProvider) -> TrustStore:
    """Return every version of the head key that is known, so that old heads verify after a rotation."""
    ensure(keys, HEAD_KEY, Algorithm.hybrid, Purpose.audit_head)
    return TrustStore.from_keys(
        {
            f"{HEAD_KEY}.{info.version}": keys.public_key(HEAD_KEY, info.version).hybrid()
            for info in keys.versions(HEAD_KEY)
            if info.state is not KeyState.destroyed
        }
    )


def open_head(envelope: bytes, trust: TrustStore) -> Head:
    """Return the head in a signed envelope. Raises `VerificationError` or `MalformedInput`."""
    opened = dsse.open_envelope(envelope, payload_type=HEAD_TYPE, trust=trust, limit=MAX_HEAD)
    value = canonical.decode(opened.payload, limit=MAX_HEAD)
    match value:
        case {
            "hash": str(digest),
            "seq": int(seq),
            "tenant_id": str(tenant_id),
            "time": str(time),
            **rest,
        } if not rest:
            return Head(tenant_id, seq, digest, time)
    raise MalformedInput("a head has exactly the members hash, seq, tenant_id and time")


def _opened_end(row: AuditHead, trust: TrustStore, tenant_id: str) -> End:
    head = open_row(row, trust)
    if head.tenant_id != tenant_id:
        raise AuditBroken(f"the head of event {row.seq} is another tenant's", seq=row.seq)
    return End(head.seq, head.hash)


def open_row(row: AuditHead, trust: TrustStore) -> Head:
    """Return the head that a row holds. Raises `AuditBroken` when it is not what was signed."""
    try:
        head = open_head(row.envelope, trust)
    except TensorGuardError as error:
        raise AuditBroken(
            f"the signed head of event {row.seq} does not verify", seq=row.seq
        ) from error
    if (head.seq, head.hash, head.tenant_id) != (row.seq, row.hash, row.tenant_id):
        raise AuditBroken(f"the signed head of event {row.seq} was edited", seq=row.seq)
    return head
