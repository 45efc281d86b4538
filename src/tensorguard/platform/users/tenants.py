"""Tenants: made on the machine by an operator, together with their audit trail; never over HTTP."""

from __future__ import annotations

import re
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from tensorguard.errors import MalformedInput, NotFound
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.base import new_id
from tensorguard.platform.db.tables.people import Tenant

TENANT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def tenant_name(text: str) -> str:
    """Return `text` if it can name a tenant. Raises `MalformedInput`."""
    if not TENANT_NAME.fullmatch(text):
        raise MalformedInput("a tenant's name has 1 to 63 of a-z, 0-9 and - inside")
    return text


def find_tenant(session: Session, name: str) -> Tenant | None:
    """Return the tenant of this name, if there is one."""
    return session.scalar(select(Tenant).where(Tenant.name == name))


def get_tenant(session: Session, name: str) -> Tenant:
    """Return the tenant of this name. Raises `NotFound`."""
    tenant = find_tenant(session, name)
    if tenant is None:
        raise NotFound(f"there is no tenant {name[:64]!r}")
    return tenant


def create_tenant(session: Session, name: str, *, actor: str, now: datetime) -> Tenant:
    """Make a tenant and begin its audit trail."""
    tenant = Tenant(id=new_id(), name=tenant_name(name), created=now)
    session.add(tenant)
    session.flush()
    trail = AuditRepository(session, tenant_id=tenant.id)
    trail.begin_chain()
    trail.append(
        actor=actor,
        action="tenant.created",
        subject=f"tenant:{tenant.id}",
        now=now,
        details={"name": name},
    )
    return tenant
