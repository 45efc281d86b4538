"""Who sent this request: a bearer token by its shape, or the session cookie with its CSRF token.

Every refusal reads the same, whatever the reason. The database holds keyed hashes of tokens only;
looking a token up by that hash tells nothing about the token. A person's scopes follow from the
role at this moment; a token never has more than its creator has at this moment.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from fastapi import Request
from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from tensorguard.errors import Forbidden, Unauthenticated
from tensorguard.platform.db.tables.people import ApiToken, UserAccount, UserSession
from tensorguard.platform.principal import (
    ROLE_SCOPES,
    Principal,
    PrincipalKind,
    Role,
    Scope,
)
from tensorguard.platform.secrets import Secrets
from tensorguard.platform.state import PlatformState, state_of
from tensorguard.settings import Settings

SESSION_PREFIX: Final = "tgs_"
API_TOKEN_PREFIX: Final = "tgp_"  # noqa: S105 - a prefix, not a token
CSRF_HEADER: Final = "x-csrf-token"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_TOKEN = 8192  # characters; our own tokens have under 60, an access token under 2,000
JWT_DOTS = 2
SESSION_IDLE = timedelta(hours=1)
TOUCH_EVERY = timedelta(minutes=1)  # how exact `last_used` is; a write per request is too dear

DEVICE_TOKEN_NEEDS: Final = frozenset({Scope.tokens_write, Scope.devices_write})


class CsrfRefused(Forbidden):
    code = "csrf"
    remedy = "Send the csrf_token of the login in the X-CSRF-Token header."


@dataclass(frozen=True, slots=True)
class SessionCookie:
    """The cookie of the console. Over TLS its name pins it to this host and to TLS."""

    name: str
    secure: bool

    @classmethod
    def of(cls, settings: Settings) -> SessionCookie:
        """Return the cookie that this configuration uses."""
        secure = settings.production or settings.behind_tls_proxy or settings.tls_cert is not None
        return cls("__Host-tg_session" if secure else "tg_session", secure)


def csrf_token(secrets: Secrets, session_id: str) -> str:
    """Return the CSRF token that belongs to one session."""
    return secrets.mac("csrf", session_id.encode()).hex()


def authenticate(request: Request, session: Session) -> Principal:
    """Return the caller. Raises `Unauthenticated`, or `CsrfRefused` for a cookie alone."""
    state = state_of(request)
    header = request.headers.get("authorization")
    if header is not None:
        return _bearer(state, session, header)
    token = request.cookies.get(SessionCookie.of(state.settings).name)
    if token is None:
        raise Unauthenticated("no credential came with the request")
    principal = _session(state, session, token)
    if request.method not in SAFE_METHODS:
        expected = csrf_token(state.secrets, principal.session_id or "")
        offered = request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(offered.encode(), expected.encode()):
            raise CsrfRefused("a request with a cookie needs its CSRF token")
    return principal


def _refused() -> Unauthenticated:
    return Unauthenticated("the credential is not valid")


def _bearer(state: PlatformState, session: Session, header: str) -> Principal:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise _refused()
    return authenticate_token(state, session, token.strip())


def authenticate_token(state: PlatformState, session: Session, token: str) -> Principal:
    """Return whom a bearer token speaks for, by the token's shape. Raises `Unauthenticated`."""
    if not 0 < len(token) <= MAX_TOKEN:
        raise _refused()
    if token.startswith(SESSION_PREFIX):
        return _session(state, session, token)
    if token.startswith(API_TOKEN_PREFIX):
        return _api_token(state, session, token)
    if token.count(".") == JWT_DOTS:
        from tensorguard.platform.oauth.access_tokens import verify_access_token

        return verify_access_token(state, token)
    raise _refused()


def _session(state: PlatformState, session: Session, token: str) -> Principal:
    now = state.now()
    found = session.execute(
        select(UserSession, UserAccount)
        .join(UserAccount, UserAccount.id == UserSession.user_id)
        .where(UserSession.token_hash == state.secrets.pepper(token))
    ).one_or_none()
    if found is None:
        raise _refused()
    login, user = found
    ended = login.revoked is not None or now >= login.expires
    if ended or user.disabled or now >= login.last_used + SESSION_IDLE:
        raise _refused()
    if now - login.last_used >= TOUCH_EVERY:
        login.last_used = now
    return Principal(
        id=user.id,
        kind=PrincipalKind.user,
        tenant_id=user.tenant_id,
        name=user.username,
        scopes=ROLE_SCOPES[Role(user.role)],
        session_id=login.id,
    )


def _api_token(state: PlatformState, session: Session, token: str) -> Principal:
    now = state.now()
    found = session.execute(
        select(ApiToken, UserAccount)
        .join(UserAccount, UserAccount.id == ApiToken.created_by)
        .where(ApiToken.token_hash == state.secrets.pepper(token))
    ).one_or_none()
    if found is None:
        raise _refused()
    row, creator = found
    if row.revoked is not None or now >= row.expires or creator.disabled:
        raise _refused()
    _touch(row, now)
    return Principal(
        id=row.id,
        kind=PrincipalKind.api_token,
        tenant_id=row.tenant_id,
        name=row.name,
        scopes=_token_scopes(row, ROLE_SCOPES[Role(creator.role)]),
        device_id=row.device_id,
    )


_TOKENS, _CREATORS = ApiToken.__table__.c, UserAccount.__table__.c
_HOLDING = (  # made once, and of columns: the intake asks it for every group
    select(_TOKENS.id, _TOKENS.scopes, _TOKENS.device_id, _TOKENS.last_used, _CREATORS.role)
    .join_from(ApiToken.__table__, UserAccount.__table__, _CREATORS.id == _TOKENS.created_by)
    .where(
        _TOKENS.id.in_(bindparam("ids", expanding=True)),
        _TOKENS.revoked.is_(None),
        _TOKENS.expires > bindparam("now"),
        _CREATORS.disabled.is_(False),
    )
)


def api_tokens_that_may(
    session: Session, token_ids: Collection[str], scope: Scope, *, now: datetime
) -> set[str]:
    """Return which of these API tokens hold now, with `scope`."""
    found = session.connection().execute(_HOLDING, {"ids": list(token_ids), "now": now}).all()
    good = [row for row in found if scope in _token_scopes(row, ROLE_SCOPES[Role(row.role)])]
    stale = [row.id for row in good if row.last_used is None or now - row.last_used >= TOUCH_EVERY]
    if stale:
        session.execute(update(ApiToken).where(ApiToken.id.in_(stale)).values(last_used=now))
    return {row.id for row in good}


def _touch(row: ApiToken, now: datetime) -> None:
    if row.last_used is None or now - row.last_used >= TOUCH_EVERY:
        row.last_used = now


class _Granted(Protocol):
    @property
    def scopes(self) -> str: ...

    @property
    def device_id(self) -> str | None: ...


def _token_scopes(row: _Granted, creator: frozenset[Scope]) -> frozenset[Scope]:
    granted = frozenset(Scope(word) for word in row.scopes.split())
    if row.device_id is None:
        return granted & creator
    # No role may write telemetry itself: a token bound to a device needs a creator who may still
    # administer devices and tokens instead.
    return granted & {Scope.telemetry_write} if creator >= DEVICE_TOKEN_NEEDS else frozenset()
