"""Routes of sign-in, accounts and API tokens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from tensorguard.asgi.problems import problem
from tensorguard.errors import Throttled, Unauthenticated
from tensorguard.platform.auth import SignedIn, require
from tensorguard.platform.authentication import SessionCookie, csrf_token
from tensorguard.platform.idempotency import Idempotency
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of
from tensorguard.platform.users import login, service, tokens
from tensorguard.platform.users.repository import TokenRepository, UserRepository
from tensorguard.platform.users.views import (
    LoginBody,
    LoginView,
    MeView,
    NewTokenBody,
    NewTokenView,
    NewUserBody,
    TokenView,
    UserChangeBody,
    UserView,
)

router = APIRouter(prefix="/api/v1", tags=["people"])

ReadsUsers = Annotated[Principal, Depends(require(Scope.users_read))]
WritesUsers = Annotated[Principal, Depends(require(Scope.users_write))]
WritesTokens = Annotated[Principal, Depends(require(Scope.tokens_write))]


@router.post("/auth/login")
def sign_in(body: LoginBody, request: Request, session: Database) -> Response:
    """Open a session. The answer carries the bearer token and sets the console's cookie."""
    state = state_of(request)
    outcome = login.sign_in(
        session,
        login.Credentials(
            tenant=body.tenant,
            username=body.username,
            password=body.password.get_secret_value(),
            address=request.client.host if request.client else "-",
        ),
        passwords=state.passwords,
        secrets=state.secrets,
        now=state.now(),
    )
    if isinstance(outcome, login.Refused):  # answered, not raised: its counters are committed
        return _refusal(outcome.error)
    view = LoginView(
        token=outcome.token,
        csrf_token=csrf_token(state.secrets, outcome.login.id),
        expires=outcome.login.expires,
        user=UserView.of(outcome.user),
    )
    response = Response(view.model_dump_json(), media_type="application/json")
    cookie = SessionCookie.of(state.settings)
    response.set_cookie(
        cookie.name,
        outcome.token,
        max_age=int(login.SESSION_LIFE.total_seconds()),
        path="/",
        secure=cookie.secure,
        httponly=True,
        samesite="strict",
    )
    return response


def _refusal(error: Unauthenticated | Throttled) -> Response:
    headers = {"WWW-Authenticate": "Bearer"}
    if isinstance(error, Throttled):
        headers = {"Retry-After": str(error.retry_after)}
    return problem(
        error.status, code=error.code, detail=str(error), remedy=error.remedy, headers=headers
    )


@router.post("/auth/logout", status_code=204)
def sign_out(request: Request, principal: SignedIn, session: Database) -> Response:
    """End the caller's session."""
    state = state_of(request)
    login.sign_out(session, principal, now=state.now())
    response = Response(status_code=204)
    cookie = SessionCookie.of(state.settings)
    response.delete_cookie(
        cookie.name, path="/", secure=cookie.secure, httponly=True, samesite="strict"
    )
    return response


@router.get("/auth/me")
def me(request: Request, principal: SignedIn) -> MeView:
    """Say who the caller is and what it may do."""
    csrf = None
    if principal.session_id is not None:
        csrf = csrf_token(state_of(request).secrets, principal.session_id)
    return MeView.of(principal, csrf)


@router.get("/users")
def list_users(principal: ReadsUsers, session: Database, paging: Paging) -> Page[UserView]:
    """List the accounts by name."""
    window = paging.window(principal, "users")
    users = UserRepository(session, tenant_id=principal.tenant_id)
    rows = users.page(after=window.after, limit=window.limit + 1)
    return window.page(rows, view=UserView.of, position=lambda user: user.username)


@router.post("/users", status_code=201)
def create_user(
    body: NewUserBody,
    request: Request,
    principal: WritesUsers,
    session: Database,
    once: Idempotency,
) -> Response:
    """Make an account."""
    state = state_of(request)
    service.insist_on_admin(principal)

    def create() -> UserView:
        user = service.create_user(
            session,
            service.NewUser(body.username, body.password.get_secret_value(), body.role),
            tenant_id=principal.tenant_id,
            actor=principal.actor,
            passwords=state.passwords,
            now=state.now(),
        )
        return UserView.of(user)

    return once.answer(session, principal, create)


@router.get("/users/{user_id}")
def get_user(user_id: str, principal: ReadsUsers, session: Database) -> UserView:
    """Return one account."""
    return UserView.of(UserRepository(session, tenant_id=principal.tenant_id).get(user_id))


@router.patch("/users/{user_id}")
def change_user(
    user_id: str, body: UserChangeBody, request: Request, principal: WritesUsers, session: Database
) -> UserView:
    """Change the role, the ban or the password of an account."""
    state = state_of(request)
    service.insist_on_admin(principal)
    password = body.password.get_secret_value() if body.password else None
    user = service.change_user(
        session,
        user_id,
        service.UserChange(body.role, body.disabled, password),
        tenant_id=principal.tenant_id,
        actor=principal.actor,
        passwords=state.passwords,
        now=state.now(),
    )
    return UserView.of(user)


@router.get("/tokens")
def list_tokens(principal: WritesTokens, session: Database, paging: Paging) -> Page[TokenView]:
    """List the caller's tokens; all of the tenant for who may read users."""
    window = paging.window(principal, "tokens")
    rows = TokenRepository(session, tenant_id=principal.tenant_id).page(
        after=window.after, limit=window.limit + 1, created_by=tokens.owner_filter(principal)
    )
    return window.page(rows, view=TokenView.of, position=lambda token: token.id)


@router.post("/tokens", status_code=201)
def create_token(
    body: NewTokenBody,
    request: Request,
    principal: WritesTokens,
    session: Database,
    once: Idempotency,
) -> Response:
    """Make a token. It is shown in this answer and never again."""
    state = state_of(request)
    new = tokens.NewToken(body.name, body.scopes, body.life, body.device_id)

    def create() -> NewTokenView:
        made = tokens.create_token(session, principal, new, secrets=state.secrets, now=state.now())
        return NewTokenView.made(*made)

    return once.answer(session, principal, create, shown_once=frozenset({"token"}))


@router.delete("/tokens/{token_id}", status_code=204)
def revoke_token(
    token_id: str, request: Request, principal: WritesTokens, session: Database
) -> Response:
    """Revoke a token at once."""
    tokens.revoke_token(session, principal, token_id, now=state_of(request).now())
    return Response(status_code=204)
