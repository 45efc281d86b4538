"""Routes of the fleet CA and its certificates. Nothing here signs; enrolment does."""

from __future__ import annotations

from typing import Annotated, Final

from cryptography.hazmat.primitives import hashes
from fastapi import APIRouter, Depends, Request

from tensorguard.identity import chain
from tensorguard.platform.auth import require
from tensorguard.platform.identity.repository import CertificateRepository, RootRepository
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of
from tensorguard.wire.devices import CertificateView, FleetCaView

router = APIRouter(prefix="/api/v1/certificates", tags=["certificates"])

MAX_REPLACED: Final = 32  # roots that one answer names

Reader = Annotated[Principal, Depends(require(Scope.devices_read))]


@router.get("")
def certificates(principal: Reader, session: Database, paging: Paging) -> Page[CertificateView]:
    """List the certificates of the tenant's devices."""
    window = paging.window(principal, "certificates")
    rows = CertificateRepository(session, tenant_id=principal.tenant_id).page(
        after=window.after, limit=window.limit + 1
    )
    return window.page(
        rows, view=CertificateView.model_validate, position=lambda certificate: certificate.serial
    )


@router.get("/ca")
def fleet_ca(request: Request, principal: Reader, session: Database) -> FleetCaView:
    """Return the tenant's root, and the ones before it to which certificates may still chain."""
    roots = RootRepository(session, tenant_id=principal.tenant_id)
    root = roots.get()
    before = roots.replaced(now=state_of(request).now(), limit=MAX_REPLACED)
    return FleetCaView(
        tenant=root.tenant_id,
        pem=root.pem,
        sha256=chain.load(root.pem).fingerprint(hashes.SHA256()).hex(),
        not_after=root.not_after,
        replaced_pems=tuple(old.pem for old in before),
    )


@router.get("/{serial}")
def certificate(serial: str, principal: Reader, session: Database) -> CertificateView:
    """Return one certificate."""
    row = CertificateRepository(session, tenant_id=principal.tenant_id).get(serial)
    return CertificateView.model_validate(row)
