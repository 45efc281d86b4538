"""The tenant's root is made once; each certificate it signs is recorded and audited with its row."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from tensorguard.identity import ca, chain
from tensorguard.identity.csr import ProvenKey
from tensorguard.keys.provider import KeyProvider
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.tables.devices import Certificate, FleetRoot
from tensorguard.platform.identity.repository import CertificateRepository, RootRepository


def ensure_root(
    session: Session, tenant_id: str, *, keys: KeyProvider, actor: str, now: datetime
) -> FleetRoot:
    """Return the tenant's root, made if this is the first time. Two at once make one."""
    roots = RootRepository(session, tenant_id=tenant_id)
    known = roots.find()
    if known is not None:
        return known
    made = ca.make_root(keys, tenant_id, now=now)
    key = ca.ca_key_id(tenant_id)
    if roots.add_if_absent(key_id=key, pem=made.pem, created=now, not_after=made.not_after):
        AuditRepository(session, tenant_id=tenant_id).append(
            actor=actor,
            action="fleet-ca.created",
            subject=f"key:{key}",
            now=now,
            details={"serial": made.serial, "not_after": made.not_after.isoformat()},
        )
    return roots.get()


def issue(
    session: Session,
    tenant_id: str,
    device_id: str,
    proven: ProvenKey,
    *,
    keys: KeyProvider,
    actor: str,
    now: datetime,
) -> tuple[Certificate, FleetRoot]:
    """Sign, record and audit a certificate; return it with the root that stands for it."""
    root = ensure_root(session, tenant_id, keys=keys, actor=actor, now=now)
    authority = ca.FleetCa(keys, tenant_id, chain.load(root.pem))
    made = authority.issue(proven, device_id, now=now)
    row = Certificate(
        serial=made.serial,
        tenant_id=tenant_id,
        device_id=device_id,
        not_before=made.not_before,
        not_after=made.not_after,
        revoked=None,
        pem=made.pem,
    )
    CertificateRepository(session, tenant_id=tenant_id).add(row)
    AuditRepository(session, tenant_id=tenant_id).append(
        actor=actor,
        action="certificate.issued",
        subject=f"certificate:{row.serial}",
        now=now,
        details={
            "device_id": device_id,
            "key_id": root.key_id,
            "key_sha256": proven.sha256,
            "not_after": row.not_after.isoformat(),
        },
    )
    return row, root
