"""Routes of the fleet CA and its certificates. Nothing here signs; enrolment does."""

from __future__ import annotations

from typing import Annotated

from cryptography.hazmat.primitives import hashes
from fastapi import APIRouter, Depends

from tensorguard.identity import chain
from tensorguard.platform.auth import require
from tensorguard.platform.identity.repository import CertificateRepository, RootRepository
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.wire.devices import CertificateView, FleetCaView

router = APIRouter(prefix="/api/v1/certificates", tags=["certificates"])

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
def fleet_ca(principal: Reader, session: Database) -> FleetCaView:
    """Return the tenant's root."""
    root = RootRepository(session, tenant_id=principal.tenant_id).get()
    digest = chain.load(root.pem).fingerprint(hashes.SHA256()).hex()
    return FleetCaView(tenant=root.tenant_id, pem=root.pem, sha256=digest, not_after=root.not_after)


@router.get("/{serial}")
def certificate(serial: str, principal: Reader, session: Database) -> CertificateView:
    """Return one certificate."""
    row = CertificateRepository(session, tenant_id=principal.tenant_id).get(serial)
    return CertificateView.model_validate(row)
