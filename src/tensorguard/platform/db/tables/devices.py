"""Fleets, devices, enrolment, certificates. A private key or an enrolment token is in no row."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tensorguard.platform.db.base import Base, StrId, Time


class Fleet(Base):
    """A named set of devices of one tenant."""

    __tablename__ = "fleet"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: Mapped[StrId] = mapped_column(primary_key=True)
    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"))
    name: Mapped[str] = mapped_column(String(64))
    created: Mapped[Time]


class Device(Base):
    """A device and the key it proved: DER SubjectPublicKeyInfo, of one device in a tenant for ever."""

    __tablename__ = "device"
    __table_args__ = (
        UniqueConstraint("tenant_id", "key_sha256"),
        Index(None, "tenant_id", "id"),
        Index(None, "fleet_id"),
    )

    id: Mapped[StrId] = mapped_column(primary_key=True)
    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"))
    fleet_id: Mapped[StrId] = mapped_column(ForeignKey("fleet.id"))
    name: Mapped[str] = mapped_column(String(64))
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    key_sha256: Mapped[str] = mapped_column(String(64))
    created: Mapped[Time]
    revoked: Mapped[Time | None]
    revocation_reason: Mapped[str | None] = mapped_column(String(200))


class Enrolment(Base):
    """A one-time enrolment token, by its keyed hash. `redeemed` and `device_id` are set together."""

    __tablename__ = "enrolment"
    __table_args__ = (Index(None, "tenant_id", "id"),)

    id: Mapped[StrId] = mapped_column(primary_key=True)
    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"))
    fleet_id: Mapped[StrId] = mapped_column(ForeignKey("fleet.id"))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_by: Mapped[str] = mapped_column(String(128))
    created: Mapped[Time]
    expires: Mapped[Time]
    redeemed: Mapped[Time | None]
    device_id: Mapped[StrId | None] = mapped_column(ForeignKey("device.id"))


class FleetRoot(Base):
    """The root certificate of a tenant's fleet CA."""

    __tablename__ = "fleet_root"

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(63))
    pem: Mapped[str] = mapped_column(Text)
    created: Mapped[Time]
    not_after: Mapped[Time]


class Certificate(Base):
    """A device certificate that was issued."""

    __tablename__ = "certificate"
    __table_args__ = (Index(None, "tenant_id", "serial"), Index(None, "device_id", "not_after"))

    serial: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"))
    device_id: Mapped[StrId] = mapped_column(ForeignKey("device.id"))
    not_before: Mapped[Time]
    not_after: Mapped[Time]
    revoked: Mapped[Time | None]
    pem: Mapped[str] = mapped_column(Text)


class UsedAssertion(Base):
    """The `jti` of an assertion that got a token; kept until the assertion cannot be valid again."""

    __tablename__ = "used_assertion"

    device_id: Mapped[StrId] = mapped_column(ForeignKey("device.id"), primary_key=True)
    jti_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"))
    expires: Mapped[Time]
