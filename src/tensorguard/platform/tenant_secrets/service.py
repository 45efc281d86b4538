"""A secret is stored sealed, used by the platform with a trace in the trail, and shown to nobody.

It is for credentials that the platform needs on a tenant's behalf: of a webhook, an exporter, a
registry. `use` is the only way to its value.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pydantic import SecretBytes
from sqlalchemy.orm import Session

from tensorguard.errors import Conflict
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.tables.keys import TenantSecret
from tensorguard.platform.keys.envelope import Envelope, Place
from tensorguard.platform.tenant_secrets.repository import SecretDirectory, SecretRepository

MAX_SECRETS: Final = 256  # of one tenant
BATCH: Final = 200  # secrets wrapped anew in one transaction and tenant


class TooManySecrets(Conflict):
    code = "too_many_secrets"
    remedy = "Delete a secret that is no longer used."


def place(tenant_id: str, name: str) -> Place:
    """Return where a secret lies."""
    return Place(tenant_id, TenantSecret.__tablename__, "sealed", name)


def put(
    session: Session,
    name: str,
    value: SecretBytes,
    *,
    tenant_id: str,
    actor: str,
    envelope: Envelope,
    now: datetime,
) -> tuple[TenantSecret, bool]:
    """Store or replace a secret; return its row and whether it is new. Raises `TooManySecrets`."""
    secrets = SecretRepository(session, tenant_id=tenant_id)
    trail = AuditRepository(session, tenant_id=tenant_id)
    trail.append(actor=actor, action="secret.stored", subject=f"secret:{name}", now=now)
    row = secrets.find(name, lock=True)
    sealed = envelope.seal(value, place(tenant_id, name))
    if row is not None:
        row.sealed, row.key_version = sealed.value, sealed.key_version
        row.updated, row.updated_by = now, actor
        return row, False
    if len(secrets.page(after=None, limit=MAX_SECRETS)) >= MAX_SECRETS:
        raise TooManySecrets(f"a tenant has at most {MAX_SECRETS} secrets")
    row = TenantSecret(
        tenant_id=tenant_id,
        name=name,
        sealed=sealed.value,
        key_version=sealed.key_version,
        created=now,
        updated=now,
        updated_by=actor,
    )
    secrets.add(row)
    return row, True


def use(
    session: Session, name: str, *, tenant_id: str, actor: str, envelope: Envelope, now: datetime
) -> SecretBytes:
    """Return the value to a part of the platform that needs it. Raises `NotFound`, `SealBroken`.

    The use is recorded first; without the record there is no value.
    """
    row = SecretRepository(session, tenant_id=tenant_id).get(name)
    AuditRepository(session, tenant_id=tenant_id).append(
        actor=actor, action="secret.used", subject=f"secret:{name}", now=now
    )
    return envelope.open(row.sealed, place(tenant_id, name))


def remove(session: Session, name: str, *, tenant_id: str, actor: str, now: datetime) -> None:
    """Forget a secret. Raises `NotFound`."""
    secrets = SecretRepository(session, tenant_id=tenant_id)
    secrets.remove(secrets.get(name, lock=True))
    AuditRepository(session, tenant_id=tenant_id).append(
        actor=actor, action="secret.deleted", subject=f"secret:{name}", now=now
    )


def rewrap(
    session: Session, tenant_id: str, version: int, *, envelope: Envelope, actor: str, now: datetime
) -> int:
    """Wrap the data keys of up to `BATCH` secrets under `version`; return how many were."""
    rows = SecretRepository(session, tenant_id=tenant_id).older_than(version, limit=BATCH)
    if not rows:
        return 0
    AuditRepository(session, tenant_id=tenant_id).append(
        actor=actor,
        action="secret.rewrapped",
        subject="secret:*",
        now=now,
        details={"count": len(rows), "version": version},
    )
    for row in rows:
        sealed = envelope.rewrap(row.sealed, place(tenant_id, row.name))
        row.sealed, row.key_version = sealed.value, sealed.key_version
    session.flush()
    return len(rows)


def behind(session: Session, version: int) -> list[str]:
    """Return the tenants that have secrets to rewrap."""
    return SecretDirectory(session).tenants_behind(version)
