"""Tenants, people, their sessions and API tokens."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from tensorguard.platform.db.base import Base, StrId, Time


class Tenant(Base):
    """An organisation; every other row belongs to exactly one."""

    __tablename__ = "tenant"

    id: Mapped[StrId] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[Time]
