"""The words of the token endpoint (RFC 6749, 7523, 8693, 8707), shared by platform and devices."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

CLIENT_CREDENTIALS: Final = "client_credentials"
TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a name
ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name
JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"

PLATFORM_AUDIENCE: Final = "tensorguard-platform"
ACCESS_TOKEN_KIND: Final = "at+jwt"  # noqa: S105 - RFC 9068's `typ`
ASSERTION_KINDS: Final = frozenset({None, "JWT", "client-authentication+jwt"})

MAX_ASSERTION_SECONDS: Final = 60  # how far ahead `exp` may be
MAX_JTI: Final = 128  # characters

FORM: Final = "application/x-www-form-urlencoded"
TOKEN_PATH: Final = "/oauth/token"  # noqa: S105 - a path
JWKS_PATH: Final = "/.well-known/jwks.json"


class TokenResponse(BaseModel):
    """A token and how long it lives, in seconds."""

    model_config = ConfigDict(frozen=True)

    access_token: Annotated[str, Field(min_length=1, max_length=8192)]
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - RFC 6750's word
    expires_in: Annotated[int, Field(ge=1, le=600)]
    scope: Annotated[str, Field(max_length=256)]
    issued_token_type: str | None = None
