"""Who sends telemetry, without asking the database for each request.

A device's access token is verified once and believed until it expires, as long as the key that
signed it is the active one. An API token's row is read once by the request that brings it and again
by the writer, for all tokens of a group at once and within the transaction that stores: a revoked
token stores nothing from the moment of its revocation on. Other credentials are looked up each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from fastapi import Request
from sqlalchemy.orm import Session

from tensorguard.errors import Forbidden, TensorGuardError, Unauthenticated
from tensorguard.platform.authentication import (
    SessionCookie,
    api_tokens_that_may,
    authenticate,
)
from tensorguard.platform.oauth.access_tokens import signing_key
from tensorguard.platform.principal import Principal, PrincipalKind, Scope
from tensorguard.platform.state import PlatformState, state_of
from tensorguard.platform.telemetry.group import Batch, Sender

MAX_HEADER: Final = 8300  # characters; longer ones are for `authenticate` to refuse


class TelemetryWriter:
    """The dependency that admits callers with `telemetry:write`."""

    scope = Scope.telemetry_write

    async def __call__(self, request: Request) -> Principal:
        """Return the caller. Raises `Unauthenticated` or `Forbidden`."""
        state = state_of(request)
        header = request.headers.get("authorization")
        if header is None and SessionCookie.of(state.settings).name not in request.cookies:
            raise Unauthenticated("no credential came with the request")
        if header is not None and len(header) <= MAX_HEADER:
            known = state.telemetry.credentials.find(
                header, now=state.now(), kid=partial(_kid, state)
            )
            if known is not None:
                return known
        principal = await asyncio.to_thread(_authenticated, request, state)
        if self.scope not in principal.scopes:
            raise Forbidden(f"this needs the scope {self.scope}")
        if header is not None:
            state.telemetry.credentials.remember(header, principal, kid=partial(_kid, state))
        return principal


def _kid(state: PlatformState) -> str:
    return state.keys.public_key(signing_key(state.keys)).kid


def _authenticated(request: Request, state: PlatformState) -> Principal:
    with state.sessions.begin() as session:
        return authenticate(request, session)


def sender_of(principal: Principal) -> Sender:
    """Return whose batch it is."""
    token = principal.id if principal.kind is PrincipalKind.api_token else None
    return Sender(principal.tenant_id, principal.actor, principal.device_id, token)


class StillAllowed:
    """Looks at the API tokens of a group again, in the transaction that stores it."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now

    def __call__(self, session: Session, batches: Sequence[Batch]) -> dict[int, TensorGuardError]:
        """Return the places of batches whose token no longer holds."""
        tokens = {batch.sender.token_id for batch in batches} - {None}
        if not tokens:
            return {}
        good = api_tokens_that_may(
            session,
            {token for token in tokens if token is not None},
            Scope.telemetry_write,
            now=self._now(),
        )
        return {
            place: Unauthenticated("the credential is not valid")
            for place, batch in enumerate(batches)
            if batch.sender.token_id is not None and batch.sender.token_id not in good
        }
