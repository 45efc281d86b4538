"""Registered model packs; their content lies under TG_HOME, named by its pack id."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from tensorguard.platform.db.base import Base, BigId, StrId, Time


class Pack(Base):
    """A verified pack of one tenant. `sha256` is the digest of the whole archive."""

    __tablename__ = "pack"
    __table_args__ = (Index(None, "tenant_id", "retired", "created"),)

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    pack_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(64))
    size: Mapped[BigId]
    sha256: Mapped[str] = mapped_column(String(64))
    signer_name: Mapped[str] = mapped_column(String(64))
    signer_key_id: Mapped[str] = mapped_column(String(64))
    created: Mapped[Time]
    created_by: Mapped[str] = mapped_column(String(128))
    retired: Mapped[Time | None]
