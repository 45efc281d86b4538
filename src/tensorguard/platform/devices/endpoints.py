"""Routes of fleets, enrolment and devices. Redeeming is public: the token in the body authenticates."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from tensorguard.platform.auth import require
from tensorguard.platform.devices import service
from tensorguard.platform.devices.repository import DeviceRepository, FleetRepository
from tensorguard.platform.idempotency import Idempotency
from tensorguard.platform.oauth.issuer import endpoints_base
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of
from tensorguard.platform.users.throttle import network
from tensorguard.wire.devices import (
    DeviceView,
    Enrolled,
    EnrolmentView,
    FleetView,
    NewEnrolment,
    NewFleet,
    NewRevocation,
    Redemption,
)
from tensorguard.wire.oauth import TOKEN_PATH

router = APIRouter(prefix="/api/v1", tags=["devices"])

FleetReader = Annotated[Principal, Depends(require(Scope.fleets_read))]
FleetWriter = Annotated[Principal, Depends(require(Scope.fleets_write))]
Enroller = Annotated[Principal, Depends(require(Scope.enrolments_write))]
DeviceReader = Annotated[Principal, Depends(require(Scope.devices_read))]
DeviceWriter = Annotated[Principal, Depends(require(Scope.devices_write))]


@router.get("/fleets")
def fleets(principal: FleetReader, session: Database, paging: Paging) -> Page[FleetView]:
    """List the tenant's fleets by name."""
    window = paging.window(principal, "fleets")
    rows = FleetRepository(session, tenant_id=principal.tenant_id).page(
        after=window.after, limit=window.limit + 1
    )
    return window.page(rows, view=FleetView.model_validate, position=lambda fleet: fleet.name)


@router.post("/fleets", status_code=201, response_model=FleetView)
def create_fleet(
    body: NewFleet, request: Request, principal: FleetWriter, session: Database, once: Idempotency
) -> Response:
    """Make a fleet."""
    now = state_of(request).now()
    return once.answer(
        session,
        principal,
        lambda: FleetView.model_validate(
            service.create_fleet(session, principal, body.name, now=now)
        ),
    )


@router.get("/fleets/{fleet_id}")
def fleet(fleet_id: str, principal: FleetReader, session: Database) -> FleetView:
    """Return one fleet."""
    row = FleetRepository(session, tenant_id=principal.tenant_id).get(fleet_id)
    return FleetView.model_validate(row)


@router.post("/enrolments", status_code=201, response_model=EnrolmentView)
def create_enrolment(
    body: NewEnrolment, request: Request, principal: Enroller, session: Database, once: Idempotency
) -> Response:
    """Make a one-time enrolment token, shown in this answer only."""
    state = state_of(request)

    def create() -> EnrolmentView:
        row, token = service.create_enrolment(
            session,
            principal,
            body.fleet_id,
            life=timedelta(seconds=body.expires_in),
            secrets=state.secrets,
            keys=state.keys,
            now=state.now(),
        )
        return EnrolmentView(id=row.id, fleet_id=row.fleet_id, token=token, expires=row.expires)

    return once.answer(session, principal, create, shown_once={"token"})


@router.post("/enrolments/redeem", status_code=201)
def redeem(body: Redemption, request: Request, session: Database) -> Enrolled:
    """Enrol a device with its one-time token and its certificate request."""
    state = state_of(request)
    client = network(request.client.host if request.client else "-")
    with state.enrolment_failures.attempt(client, state.now):
        enrolled = service.redeem(
            session, body, secrets=state.secrets, keys=state.keys, now=state.now()
        )
    return Enrolled(
        device_id=enrolled.device.id,
        tenant=enrolled.device.tenant_id,
        fleet_id=enrolled.device.fleet_id,
        certificate_pem=enrolled.certificate.pem,
        ca_pem=enrolled.root.pem,
        token_endpoint=endpoints_base(request, state.settings) + TOKEN_PATH,
    )


@router.get("/devices")
def devices(principal: DeviceReader, session: Database, paging: Paging) -> Page[DeviceView]:
    """List the tenant's devices."""
    window = paging.window(principal, "devices")
    rows = DeviceRepository(session, tenant_id=principal.tenant_id).page(
        after=window.after, limit=window.limit + 1
    )
    return window.page(rows, view=DeviceView.model_validate, position=lambda device: device.id)


@router.get("/devices/{device_id}")
def device(device_id: str, principal: DeviceReader, session: Database) -> DeviceView:
    """Return one device."""
    row = DeviceRepository(session, tenant_id=principal.tenant_id).get(device_id)
    return DeviceView.model_validate(row)


@router.post("/devices/{device_id}/revocation")
def revoke(
    device_id: str,
    body: NewRevocation,
    request: Request,
    principal: DeviceWriter,
    session: Database,
) -> DeviceView:
    """Revoke a device: no new token from now on, and issued ones end within 10 minutes."""
    now = state_of(request).now()
    row = service.revoke(session, principal, device_id, reason=body.reason, now=now)
    return DeviceView.model_validate(row)
