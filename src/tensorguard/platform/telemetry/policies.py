"""Routes of a tenant's telemetry policy: how long samples are kept, how many a second are taken."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.auth import require
from tensorguard.platform.db.tables.telemetry import TelemetryPolicy
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import PlatformState, state_of
from tensorguard.platform.telemetry.retention import load_policies

router = APIRouter(prefix="/api/v1/telemetry/policy", tags=["telemetry"])

Reader = Annotated[Principal, Depends(require(Scope.telemetry_read))]
Administrator = Annotated[Principal, Depends(require(Scope.users_write))]


class Policy(BaseModel):
    """What one tenant may send and how long it is kept; null is what the settings say."""

    retention_days: Annotated[int | None, Field(ge=1, le=36_500)] = None
    device_rate: Annotated[int | None, Field(ge=1, le=10**9)] = None
    tenant_rate: Annotated[int | None, Field(ge=1, le=10**9)] = None


class PolicyView(BaseModel):
    """A tenant's own policy, and what holds where it says nothing."""

    own: Policy
    settings: Policy


def _view(state: PlatformState, row: TelemetryPolicy | None) -> PolicyView:
    own = Policy()
    if row is not None:
        own = Policy(
            retention_days=row.retention_days,
            device_rate=row.device_rate,
            tenant_rate=row.tenant_rate,
        )
    usual = Policy(
        retention_days=state.settings.telemetry_retention_days,
        device_rate=state.settings.max_device_rate,
        tenant_rate=state.settings.max_tenant_rate,
    )
    return PolicyView(own=own, settings=usual)


@router.get("")
def policy(request: Request, principal: Reader, session: Database) -> PolicyView:
    """Show the policy of the caller's tenant."""
    return _view(state_of(request), session.get(TelemetryPolicy, principal.tenant_id))


@router.put("")
def change_policy(
    wanted: Policy, request: Request, principal: Administrator, session: Database
) -> PolicyView:
    """Set the policy. This process follows at once, others within a minute."""
    state = state_of(request)
    row = session.get(TelemetryPolicy, principal.tenant_id)
    if row is None:
        row = TelemetryPolicy(tenant_id=principal.tenant_id)
        session.add(row)
    row.retention_days = wanted.retention_days
    row.device_rate = wanted.device_rate
    row.tenant_rate = wanted.tenant_rate
    _audit(session, principal, wanted, state)
    session.flush()
    load_policies(session, state.telemetry)
    return _view(state, row)


def _audit(session: Session, principal: Principal, wanted: Policy, state: PlatformState) -> None:
    AuditRepository(session, tenant_id=principal.tenant_id).append(
        actor=principal.actor,
        action="telemetry.policy_changed",
        subject=f"tenant:{principal.tenant_id}",
        now=state.now(),
        details={key: str(value) for key, value in wanted.model_dump().items()},
    )
