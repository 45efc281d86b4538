"""Authorisation of HTTP requests: every route depends on `require`, or is listed as public."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from tensorguard.errors import Forbidden
from tensorguard.platform.authentication import authenticate
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database


class RequireScope:
    """A dependency that authenticates the caller and insists on one scope, or on none but a name."""

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    def __call__(self, request: Request, session: Database) -> Principal:
        """Return the caller. Raises `Unauthenticated` or `Forbidden`."""
        principal = authenticate(request, session)
        if self.scope is not None and self.scope not in principal.scopes:
            raise Forbidden(f"this needs the scope {self.scope}")
        return principal


def require(scope: Scope) -> Callable[[Request, Database], Principal]:
    """Return the dependency that admits callers with `scope`."""
    return RequireScope(scope)


SignedIn = Annotated[Principal, Depends(RequireScope(None))]
