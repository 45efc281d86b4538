"""The audit trail's tables."""

from __future__ import annotations

from sqlalchemy import ForeignKey, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from tensorguard.platform.db.base import Base, BigId, StrId, Time


class AuditChain(Base):
    """The end of each tenant's chain; its row lock orders the appends."""

    __tablename__ = "audit_chain"

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    seq: Mapped[BigId]
    hash: Mapped[str] = mapped_column(String(64))


class AuditEvent(Base):
    """One event. `details` is canonical JSON."""

    __tablename__ = "audit_event"

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    seq: Mapped[BigId] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[Time]
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(256))
    details: Mapped[str] = mapped_column(Text)
    request_id: Mapped[str] = mapped_column(String(64))
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class AuditHead(Base):
    """A signed head: a DSSE envelope over (tenant, seq, hash, time)."""

    __tablename__ = "audit_head"

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    seq: Mapped[BigId] = mapped_column(primary_key=True, autoincrement=False)
    hash: Mapped[str] = mapped_column(String(64))
    time: Mapped[Time]
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
