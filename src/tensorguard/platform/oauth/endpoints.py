"""The token endpoint and the key set. Both are public: the token request authenticates itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from tensorguard.platform.authentication import authenticate_token
from tensorguard.platform.oauth import access_tokens, form, service
from tensorguard.platform.oauth.issuer import audiences
from tensorguard.platform.principal import Principal
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of
from tensorguard.wire.oauth import JWKS_PATH, TOKEN_PATH, TokenResponse

router = APIRouter(tags=["oauth"])


async def token_form(request: Request) -> form.TokenForm:
    """Read the request's form. Raises `InvalidRequest`."""
    return form.parse(await request.body(), request.headers.get("content-type", ""))


@router.post(TOKEN_PATH, response_model_exclude_none=True)
def token(
    request: Request, body: Annotated[form.TokenForm, Depends(token_form)], session: Database
) -> TokenResponse:
    """Give a device a token or a grant, or a person a grant."""
    state = state_of(request)

    def subject(value: str) -> Principal:
        return authenticate_token(state, session, value)

    return service.token(
        session,
        state,
        service.TokenRequest(body, audiences(request, state.settings), subject),
    )


@router.get(JWKS_PATH)
def jwks(request: Request) -> dict[str, list[dict[str, str]]]:
    """Return the public keys that verify our tokens and grants."""
    return access_tokens.jwks(state_of(request).keys)
