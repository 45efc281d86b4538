"""Keyrings, the history of their versions, and sealed secrets. No row holds private bytes."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from tensorguard.platform.db.base import Base, BigId, StrId, Time


class Keyring(Base):
    """A named key of one tenant and the policy of its rotation; the material is in the custody.

    `managed` rings are used by the platform itself, never through the API. No `period` means that
    the ring rotates on demand only; no `overlap`, that replaced versions are never retired.
    """

    __tablename__ = "keyring"

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(63), unique=True)
    purpose: Mapped[str] = mapped_column(String(16))
    algorithm: Mapped[str] = mapped_column(String(24))
    managed: Mapped[bool] = mapped_column(Boolean)
    period: Mapped[BigId | None]  # seconds
    overlap: Mapped[BigId | None]  # seconds
    created: Mapped[Time]
    created_by: Mapped[str] = mapped_column(String(128))


class KeyringVersion(Base):
    """When a version came into use and when the next one replaced it."""

    __tablename__ = "keyring_version"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "name"], ["keyring.tenant_id", "keyring.name"]),
    )

    tenant_id: Mapped[StrId] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    activated: Mapped[Time]
    replaced: Mapped[Time | None]


class TenantSecret(Base):
    """A credential that a tenant stored, sealed under `key_version` of the data-at-rest ring."""

    __tablename__ = "tenant_secret"
    __table_args__ = (Index(None, "key_version"),)

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    key_version: Mapped[int] = mapped_column(Integer)
    created: Mapped[Time]
    updated: Mapped[Time]
    updated_by: Mapped[str] = mapped_column(String(128))


class ReplacedRoot(Base):
    """A fleet root that another one replaced; leaves that it signed still chain to it."""

    __tablename__ = "replaced_root"

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(63))
    pem: Mapped[str] = mapped_column(Text)
    created: Mapped[Time]
    not_after: Mapped[Time]
    replaced: Mapped[Time]
