"""A tenant's root belongs to the active version of its CA key; each certificate is recorded and audited.

When the key has rotated, the next use makes a root for the new version. The replaced root is kept:
what it signed chains to it until it expires.
"""

from __future__ import annotations

from datetime import datetime

from cryptography.hazmat.primitives import hashes
from sqlalchemy.orm import Session

from tensorguard.identity import ca, chain
from tensorguard.identity.csr import ProvenKey
from tensorguard.keys.provider import KeyProvider, KeyState, key_id
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.tables.devices import Certificate, FleetRoot
from tensorguard.platform.identity.repository import CertificateRepository, RootRepository


def ensure_root(
    session: Session, tenant_id: str, *, keys: KeyProvider, actor: str, now: datetime
) -> FleetRoot:
    """Return the root of the CA key's active version, made if it is absent. Two at once make one."""
    roots = RootRepository(session, tenant_id=tenant_id)
    known = roots.find()
    if known is not None:
        return _renewed(session, roots, known, keys=keys, actor=actor, now=now)
    made = ca.make_root(keys, tenant_id, now=now)
    key = ca.ca_key_id(tenant_id)
    if roots.add_if_absent(key_id=key, pem=made.pem, created=now, not_after=made.not_after):
        _record(session, tenant_id, "fleet-ca.created", made, actor=actor, now=now)
    return roots.get()


def _renewed(
    session: Session,
    roots: RootRepository,
    known: FleetRoot,
    *,
    keys: KeyProvider,
    actor: str,
    now: datetime,
) -> FleetRoot:
    if not _signed_by_older(known, keys):
        return known
    known = roots.get(lock=True)
    if not _signed_by_older(known, keys):  # another request was first
        return known
    made = ca.make_root(keys, known.tenant_id, now=now)
    _record(session, known.tenant_id, "fleet-ca.replaced", made, actor=actor, now=now)
    digest = chain.load(known.pem).fingerprint(hashes.SHA256()).hex()
    roots.replace(known, sha256=digest, pem=made.pem, not_after=made.not_after, now=now)
    return known


def _signed_by_older(root: FleetRoot, keys: KeyProvider) -> bool:
    """Whether the CA key has rotated since; a root of no version of it is not replaced."""
    key = key_id(root.key_id)
    public = chain.load(root.pem).public_key()
    if keys.public_key(key).ec() == public:
        return False
    older = [info for info in keys.versions(key) if info.state is not KeyState.destroyed]
    return any(keys.public_key(key, info.version).ec() == public for info in older)


def _record(
    session: Session, tenant_id: str, action: str, made: ca.Issued, *, actor: str, now: datetime
) -> None:
    AuditRepository(session, tenant_id=tenant_id).append(
        actor=actor,
        action=action,
        subject=f"key:{ca.ca_key_id(tenant_id)}",
        now=now,
        details={"serial": made.serial, "not_after": made.not_after.isoformat()},
    )


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
