"""Routes of the audit trail: read it, read its signed heads, sign its head now."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel

from tensorguard.crypto import canonical
from tensorguard.platform.audit import service
from tensorguard.platform.audit.chain import MAX_DETAILS, Detail
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.auth import require
from tensorguard.platform.db.tables.audit import AuditEvent, AuditHead
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

Reads = Annotated[Principal, Depends(require(Scope.audit_read))]
Signs = Annotated[Principal, Depends(require(Scope.keys_write))]
Seq = Annotated[int, Path(ge=1, lt=2**63)]


class EventView(BaseModel):
    """One event, with all that its hash covers."""

    seq: int
    time: datetime
    actor: str
    action: str
    subject: str
    details: dict[str, Detail]
    request_id: str
    previous: str
    hash: str

    @classmethod
    def of(cls, row: AuditEvent) -> EventView:
        """Render a row."""
        return cls(
            seq=row.seq,
            time=row.time,
            actor=row.actor,
            action=row.action,
            subject=row.subject,
            details=canonical.parse(row.details.encode(), limit=MAX_DETAILS),
            request_id=row.request_id,
            previous=row.previous,
            hash=row.hash,
        )


class HeadView(BaseModel):
    """A signed head. `envelope` is the text of the DSSE envelope, byte for byte."""

    seq: int
    hash: str
    time: datetime
    envelope: str

    @classmethod
    def of(cls, row: AuditHead) -> HeadView:
        """Render a row."""
        return cls(seq=row.seq, hash=row.hash, time=row.time, envelope=row.envelope.decode())


@router.get("")
def list_events(principal: Reads, session: Database, paging: Paging) -> Page[EventView]:
    """List the trail from its beginning."""
    window = paging.window(principal, "audit")
    rows = AuditRepository(session, tenant_id=principal.tenant_id).page(
        after=int(window.after or 0), limit=window.limit + 1
    )
    return window.page(rows, view=EventView.of, position=lambda row: str(row.seq))


@router.get("/heads")
def list_heads(principal: Reads, session: Database, paging: Paging) -> Page[HeadView]:
    """List the signed heads from the first. Keep them elsewhere: they prove the tail."""
    window = paging.window(principal, "audit-heads")
    rows = AuditRepository(session, tenant_id=principal.tenant_id).page_of_heads(
        after=int(window.after or 0), limit=window.limit + 1
    )
    return window.page(rows, view=HeadView.of, position=lambda row: str(row.seq))


@router.post("/heads", status_code=201)
def sign_head(request: Request, principal: Signs, session: Database) -> HeadView:
    """Sign the end of the trail now."""
    state = state_of(request)
    return HeadView.of(service.request_head(session, principal, keys=state.keys, now=state.now()))


@router.get("/{seq}")
def get_event(seq: Seq, principal: Reads, session: Database) -> EventView:
    """Return one event."""
    return EventView.of(AuditRepository(session, tenant_id=principal.tenant_id).get(seq))
