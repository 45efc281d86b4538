"""Routes of a tenant's secrets: put, list, delete. No route gives a value back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretBytes, SecretStr

from tensorguard.platform.auth import require
from tensorguard.platform.db.tables.keys import TenantSecret
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of
from tensorguard.platform.tenant_secrets import service
from tensorguard.platform.tenant_secrets.repository import SecretRepository

router = APIRouter(prefix="/api/v1/secrets", tags=["secrets"])

Reader = Annotated[Principal, Depends(require(Scope.keys_read))]
Writer = Annotated[Principal, Depends(require(Scope.keys_write))]
Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class SecretBody(BaseModel):
    """A secret to be stored."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    value: Annotated[SecretStr, Field(min_length=1, max_length=8192)]


class SecretView(BaseModel):
    """A secret without its value."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    key_version: int
    created: datetime
    updated: datetime
    updated_by: str


@router.get("")
def list_secrets(principal: Reader, session: Database, paging: Paging) -> Page[SecretView]:
    """List the tenant's secrets by name."""
    window = paging.window(principal, "secrets")
    rows = SecretRepository(session, tenant_id=principal.tenant_id).page(
        after=window.after, limit=window.limit + 1
    )
    return window.page(rows, view=SecretView.model_validate, position=lambda row: row.name)


@router.get("/{name}")
def get_secret(name: Name, principal: Reader, session: Database) -> SecretView:
    """Return what is known of one secret."""
    row: TenantSecret = SecretRepository(session, tenant_id=principal.tenant_id).get(name)
    return SecretView.model_validate(row)


@router.put("/{name}")
def put_secret(
    name: Name,
    body: SecretBody,
    request: Request,
    response: Response,
    principal: Writer,
    session: Database,
) -> SecretView:
    """Store or replace a secret: 201 when it is new. Sent again, it is the same."""
    state = state_of(request)
    row, created = service.put(
        session,
        name,
        SecretBytes(body.value.get_secret_value().encode()),
        tenant_id=principal.tenant_id,
        actor=principal.actor,
        envelope=state.envelope,
        now=state.now(),
    )
    response.status_code = 201 if created else 200
    return SecretView.model_validate(row)


@router.delete("/{name}", status_code=204)
def delete_secret(name: Name, request: Request, principal: Writer, session: Database) -> Response:
    """Forget a secret."""
    service.remove(
        session,
        name,
        tenant_id=principal.tenant_id,
        actor=principal.actor,
        now=state_of(request).now(),
    )
    return Response(status_code=204)
