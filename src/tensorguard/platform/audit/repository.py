"""Audit rows of one tenant. An append takes part in the caller's transaction, or nothing does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from tensorguard.crypto import canonical
from tensorguard.errors import MalformedInput, NotFound
from tensorguard.observability import request_ids
from tensorguard.platform.audit.chain import GENESIS, MAX_DETAILS, Detail, Event
from tensorguard.platform.db.tables.audit import AuditChain, AuditEvent, AuditHead


class AuditRepository:
    """The trail of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def append(
        self,
        *,
        actor: str,
        action: str,
        subject: str,
        now: datetime,
        details: Mapping[str, Detail] | None = None,
    ) -> Event:
        """Add one event to the chain and return it."""
        chain = self._locked_chain()
        encoded = canonical.encode(dict(details or {}))
        if len(encoded) > MAX_DETAILS:
            raise MalformedInput(f"audit details may have at most {MAX_DETAILS} bytes")
        event = Event(
            tenant_id=self._tenant_id,
            seq=chain.seq + 1,
            time=now.isoformat(),
            actor=actor,
            action=action,
            subject=subject,
            details=details or {},
            request_id=request_ids.current.get(),
            previous=chain.hash,
        )
        chain.seq, chain.hash = event.seq, event.digest()
        self._session.add(
            AuditEvent(
                tenant_id=event.tenant_id,
                seq=event.seq,
                time=now,
                actor=event.actor,
                action=event.action,
                subject=event.subject,
                details=encoded.decode(),
                request_id=event.request_id,
                previous=event.previous,
                hash=chain.hash,
            )
        )
        self._session.flush()
        return event

    def _locked_chain(self) -> AuditChain:
        chain = self._session.get(
            AuditChain, self._tenant_id, with_for_update=True, populate_existing=True
        )
        if chain is None:  # made together with the tenant
            raise NotFound(f"the tenant {self._tenant_id} has no audit trail")
        return chain

    def begin_chain(self) -> None:
        """Start the trail of a new tenant."""
        self._session.add(AuditChain(tenant_id=self._tenant_id, seq=0, hash=GENESIS))
        self._session.flush()

    def get(self, seq: int) -> AuditEvent:
        """Return one event. Raises `NotFound`."""
        row = self._session.get(AuditEvent, (self._tenant_id, seq))
        if row is None:
            raise NotFound(f"there is no audit event {seq}")
        return row

    def page(self, *, after: int, limit: int) -> list[AuditEvent]:
        """Return up to `limit` events with a sequence number above `after`, in order."""
        query = (
            select(AuditEvent)
            .where(AuditEvent.tenant_id == self._tenant_id, AuditEvent.seq > after)
            .order_by(AuditEvent.seq)
            .limit(limit)
        )
        return list(self._session.scalars(query))

    def events(self, *, batch: int = 1000) -> Iterator[AuditEvent]:
        """Yield the whole trail in order, in bounded memory."""
        after = 0
        while rows := self.page(after=after, limit=batch):
            yield from rows
            after = rows[-1].seq
            self._session.expunge_all()

    def end(self) -> tuple[int, str]:
        """Return the sequence number and hash of the last event."""
        chain = self._session.get(AuditChain, self._tenant_id)
        return (chain.seq, chain.hash) if chain else (0, GENESIS)

    def heads(self) -> list[AuditHead]:
        """Return every signed head in order."""
        query = (
            select(AuditHead).where(AuditHead.tenant_id == self._tenant_id).order_by(AuditHead.seq)
        )
        return list(self._session.scalars(query))

    def add_head(self, head: AuditHead) -> None:
        """Store a signed head."""
        self._session.add(head)
