"""Tenants, people, their sessions, API tokens and retries. No row holds a password or a token."""

from __future__ import annotations

from sqlalchemy import Boolean, ForeignKey, Index, Integer, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tensorguard.platform.db.base import Base, StrId, Time


class Tenant(Base):
    """An organisation; every other row belongs to exactly one."""

    __tablename__ = "tenant"

    id: Mapped[StrId] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[Time]


class UserAccount(Base):
    """A person. `password_hash` is Argon2id in its own encoding, salt and costs included."""

    __tablename__ = "user_account"
    __table_args__ = (UniqueConstraint("tenant_id", "username"),)

    id: Mapped[StrId] = mapped_column(primary_key=True)
    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"))
    username: Mapped[str] = mapped_column(String(64))
    password_hash: Mapped[str] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(16))
    disabled: Mapped[bool] = mapped_column(Boolean)
    failed_logins: Mapped[int] = mapped_column(Integer)
    locked_until: Mapped[Time | None]
    created: Mapped[Time]


class UserSession(Base):
    """A login of a person. `token_hash` is the keyed hash of the bearer token."""

    __tablename__ = "user_session"
    __table_args__ = (Index(None, "user_id"), Index(None, "expires"))

    id: Mapped[StrId] = mapped_column(primary_key=True)
    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"))
    user_id: Mapped[StrId] = mapped_column(ForeignKey("user_account.id"))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[Time]
    expires: Mapped[Time]
    last_used: Mapped[Time]
    revoked: Mapped[Time | None]


class ApiToken(Base):
    """A program's credential. `scopes` are sorted and separated by spaces."""

    __tablename__ = "api_token"
    __table_args__ = (Index(None, "tenant_id", "id"), Index(None, "device_id"))

    id: Mapped[StrId] = mapped_column(primary_key=True)
    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"))
    name: Mapped[str] = mapped_column(String(64))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[str] = mapped_column(String(512))
    created_by: Mapped[StrId] = mapped_column(ForeignKey("user_account.id"))
    device_id: Mapped[StrId | None]
    created: Mapped[Time]
    expires: Mapped[Time]
    last_used: Mapped[Time | None]
    revoked: Mapped[Time | None]


class LoginFailure(Base):
    """Failed logins of one client address, or of one account that does not exist."""

    __tablename__ = "login_failure"
    __table_args__ = (Index(None, "last"),)

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    failures: Mapped[int] = mapped_column(Integer)
    last: Mapped[Time]
    locked_until: Mapped[Time | None]


class IdempotencyRecord(Base):
    """The answer to a request that may be sent again."""

    __tablename__ = "idempotency_record"
    __table_args__ = (Index(None, "expires"),)

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    actor: Mapped[str] = mapped_column(String(128), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    expires: Mapped[Time]
