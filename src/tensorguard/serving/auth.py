"""Authorisation of HTTP requests: every route depends on `RequireGrant`, or is listed as public."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from tensorguard.errors import Forbidden
from tensorguard.serving.state import state_of
from tensorguard.wire.grants import SCOPE, Grant


class RequireGrant:
    """A dependency that verifies the caller's grant and insists on one scope."""

    def __init__(self, scope: str) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Grant:
        """Return the grant. Raises `Unauthenticated` or `Forbidden`."""
        headers = request.headers.getlist("authorization")
        grant = await state_of(request).grants.verify(headers[0] if len(headers) == 1 else None)
        if self.scope not in grant.scopes:
            raise Forbidden(f"this needs the scope {self.scope}")
        return grant


Granted = Annotated[Grant, Depends(RequireGrant(SCOPE))]
