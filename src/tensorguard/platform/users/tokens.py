"""API tokens: shown once, scoped, expiring, and never more than their creator, then and at use.

A token that is bound to a device carries `telemetry:write` and nothing else. No role has that scope
itself; making such a token takes `tokens:write` and `devices:write` (see `authentication`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from tensorguard.errors import Forbidden, InputError
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.authentication import DEVICE_TOKEN_NEEDS
from tensorguard.platform.db.base import new_id
from tensorguard.platform.db.tables.people import ApiToken
from tensorguard.platform.devices.repository import DeviceRepository
from tensorguard.platform.principal import Principal, PrincipalKind, Scope
from tensorguard.platform.secrets import Secrets, random_token
from tensorguard.platform.users.repository import TokenRepository

LONGEST: Final = timedelta(days=365)


class BadApiToken(InputError):
    code = "bad_api_token"
    status = 422
    remedy = "Name at least one scope that you have, and a life of 1 second to 365 days."


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to be made."""

    name: str
    scopes: frozenset[Scope]
    life: timedelta
    device_id: str | None = None


def create_token(
    session: Session, principal: Principal, new: NewToken, *, secrets: Secrets, now: datetime
) -> tuple[ApiToken, str]:
    """Make a token; return its row and, this once, the token. Raises `BadApiToken`, `Forbidden`."""
    if principal.kind is not PrincipalKind.user:
        raise Forbidden("tokens are made by signed-in people only")
    if not new.scopes or not timedelta(0) < new.life <= LONGEST:
        raise BadApiToken("a token has at least one scope and lives 1 second to 365 days")
    _check_scopes(session, principal, new)
    token = random_token("tgp")
    row = ApiToken(
        id=new_id(),
        tenant_id=principal.tenant_id,
        name=new.name,
        token_hash=secrets.pepper(token),
        scopes=" ".join(sorted(new.scopes)),
        created_by=principal.id,
        device_id=new.device_id,
        created=now,
        expires=now + new.life,
        last_used=None,
        revoked=None,
    )
    TokenRepository(session, tenant_id=principal.tenant_id).add(row)
    AuditRepository(session, tenant_id=principal.tenant_id).append(
        actor=principal.actor,
        action="token.created",
        subject=f"token:{row.id}",
        now=now,
        details={
            "device_id": row.device_id,
            "expires": row.expires.isoformat(),
            "name": row.name,
            "scopes": row.scopes,
        },
    )
    return row, token


def _check_scopes(session: Session, principal: Principal, new: NewToken) -> None:
    if new.device_id is not None:
        if new.scopes != {Scope.telemetry_write}:
            raise BadApiToken("a token bound to a device carries telemetry:write alone")
        if not principal.scopes >= DEVICE_TOKEN_NEEDS:
            raise Forbidden("binding a token to a device needs devices:write and tokens:write")
        # Locked, so that a revocation of the device at the same moment finds the token, too.
        devices = DeviceRepository(session, tenant_id=principal.tenant_id)
        if devices.get(new.device_id, lock=True).revoked is not None:
            raise BadApiToken("the device is revoked")
        return
    beyond = new.scopes - principal.scopes
    if beyond:
        raise Forbidden(f"you do not have {', '.join(sorted(beyond))} to give")


def get_token(session: Session, principal: Principal, token_id: str) -> ApiToken:
    """Return a token that the caller may see. Raises `NotFound`."""
    return TokenRepository(session, tenant_id=principal.tenant_id).get(
        token_id, created_by=owner_filter(principal)
    )


def owner_filter(principal: Principal) -> str | None:
    """Return whose tokens the caller may see: all for who reads users, else the own ones."""
    return None if Scope.users_read in principal.scopes else principal.id


def revoke_token(session: Session, principal: Principal, token_id: str, *, now: datetime) -> None:
    """Revoke a token at once. Revoking twice changes nothing. Raises `NotFound`."""
    row = get_token(session, principal, token_id)
    if row.revoked is not None:
        return
    row.revoked = now
    AuditRepository(session, tenant_id=principal.tenant_id).append(
        actor=principal.actor,
        action="token.revoked",
        subject=f"token:{row.id}",
        now=now,
        details={"name": row.name},
    )
