"""Audit rows of one tenant. An append takes part in the caller's transaction, or nothing does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from tensorguard.crypto import canonical
from tensorguard.errors import MalformedInput, NotFound
from tensorguard.observability import request_ids
from tensorguard.platform.audit.chain import (
    BEGIN,
    GENESIS,
    MAX_DETAILS,
    AuditBroken,
    Detail,
    End,
    Event,
    Head,
)
from tensorguard.platform.db.tables.audit import AuditChain, AuditEvent, AuditHead
from tensorguard.platform.db.upsert import insert_if_absent


class AuditRepository:
    """The trail of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self.tenant_id = tenant_id

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
        now = now.astimezone(UTC)
        chain = self._locked_chain()
        encoded = canonical.encode(dict(details or {}))
        if len(encoded) > MAX_DETAILS:
            raise MalformedInput(f"audit details may have at most {MAX_DETAILS} bytes")
        event = Event(
            tenant_id=self.tenant_id,
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
            AuditChain, self.tenant_id, with_for_update=True, populate_existing=True
        )
        if chain is None:  # made together with the tenant
            raise NotFound(f"the tenant {self.tenant_id} has no audit trail")
        return chain

    def begin_chain(self) -> None:
        """Start the trail of a new tenant."""
        self._session.add(AuditChain(tenant_id=self.tenant_id, seq=0, hash=GENESIS))
        self._session.flush()

    def get(self, seq: int) -> AuditEvent:
        """Return one event. Raises `NotFound`."""
        row = self._session.get(AuditEvent, (self.tenant_id, seq))
        if row is None:
            raise NotFound(f"there is no audit event {seq}")
        return row

    def page(self, *, after: int, limit: int) -> list[AuditEvent]:
        """Return up to `limit` events with a sequence number above `after`, in order."""
        query = (
            select(AuditEvent)
            .where(AuditEvent.tenant_id == self.tenant_id, AuditEvent.seq > after)
            .order_by(AuditEvent.seq)
            .limit(limit)
        )
        return list(self._session.scalars(query))

    def events(self, *, after: int = 0, batch: int = 1000) -> Iterator[AuditEvent]:
        """Yield the events above `after` in order, in bounded memory."""
        while rows := self.page(after=after, limit=batch):
            yield from rows
            after = rows[-1].seq
            for row in rows:
                self._session.expunge(row)

    def end(self) -> End:
        """Return the end of the chain, as its own row says."""
        chain = self._session.get(AuditChain, self.tenant_id, populate_existing=True)
        return End(chain.seq, chain.hash) if chain else BEGIN

    def page_of_heads(self, *, after: int, limit: int) -> list[AuditHead]:
        """Return up to `limit` signed heads above the event `after`, in order."""
        query = (
            select(AuditHead)
            .where(AuditHead.tenant_id == self.tenant_id, AuditHead.seq > after)
            .order_by(AuditHead.seq)
            .limit(limit)
        )
        return list(self._session.scalars(query))

    def heads(self, *, batch: int = 100) -> Iterator[AuditHead]:
        """Yield every signed head in order, in bounded memory."""
        after = 0
        while rows := self.page_of_heads(after=after, limit=batch):
            yield from rows
            after = rows[-1].seq
            for row in rows:
                self._session.expunge(row)

    def last_head(self) -> AuditHead | None:
        """Return the newest signed head, if there is one."""
        query = (
            select(AuditHead)
            .where(AuditHead.tenant_id == self.tenant_id)
            .order_by(AuditHead.seq.desc())
            .limit(1)
        )
        return self._session.scalar(query)

    def add_head(self, head: Head, *, time: datetime, envelope: bytes) -> AuditHead:
        """Store a signed head; of two that sign the same event, one is kept."""
        values = {
            "tenant_id": self.tenant_id,
            "seq": head.seq,
            "hash": head.hash,
            "time": time,
            "envelope": envelope,
        }
        insert_if_absent(self._session, AuditHead, values)
        return self._session.get_one(AuditHead, (self.tenant_id, head.seq))


def event_of(row: AuditEvent) -> Event:
    """Return what a row says. Raises `AuditBroken` when its details are not as they were stored."""
    try:
        details = canonical.decode(row.details.encode(), limit=MAX_DETAILS)
    except MalformedInput as error:
        raise AuditBroken(f"event {row.seq} was edited", seq=row.seq) from error
    return Event(
        tenant_id=row.tenant_id,
        seq=row.seq,
        time=row.time.isoformat(),
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        details=details,
        request_id=row.request_id,
        previous=row.previous,
    )
