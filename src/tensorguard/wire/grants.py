"""A serving grant: the platform's signed, short-lived word that a caller may use certain packs.

The gateway has no database: a grant that verifies is all that it knows of a caller. Grants live at
most 10 minutes, so that a revocation reaches the gateway within that time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from tensorguard.wire.jws import KeySet, TokenRefused, read_header, verify

AUDIENCE: Final = "tensorguard-serving"
TYPE: Final = "tg-grant+jwt"
SCOPE: Final = "serving:infer"
MAX_PACKS: Final = 64
MAX_LIFETIME: Final = timedelta(minutes=10)
SKEW: Final = timedelta(seconds=60)  # between the clocks of platform and gateway

Id = Annotated[str, Meta(min_length=1, max_length=64)]
PackId = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[int, Meta(ge=0, le=1 << 37)]


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The claims of a grant; unknown ones are ignored (RFC 7519, section 4)."""

    iss: Annotated[str, Meta(max_length=512)]
    sub: Id
    aud: Literal["tensorguard-serving"]
    tenant: Id
    kind: Literal["device", "user", "api-token"]
    scope: Annotated[str, Meta(max_length=256)]
    packs: Annotated[tuple[PackId, ...], Meta(min_length=1, max_length=MAX_PACKS)]
    iat: Seconds
    exp: Seconds
    jti: Id


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant that verified. Only `verify_grant` makes one."""

    subject: str
    tenant: str
    scopes: frozenset[str]
    packs: frozenset[str]
    expires: datetime
    kind: str
    token_id: str


def verify_grant(token: str, jwks: KeySet, now: datetime) -> Grant:
    """Return what `token` grants at `now`.

    Raises `TokenRefused`, or its subclass `UnknownSigner` when the signing key is not in `jwks`.
    """
    # (1) bounded, and signed by a key of the platform with that key's algorithm
    header = read_header(token)
    payload = verify(token, jwks.key(header.kid), kinds={TYPE})
    # (2) every claim is there, and the audience is serving
    try:
        claims = msgspec.json.decode(payload, type=Claims)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise TokenRefused("the token is no serving grant") from error
    # (3) now is within its life, and its life is short
    issued = datetime.fromtimestamp(claims.iat, UTC)
    expires = datetime.fromtimestamp(claims.exp, UTC)
    if now >= expires:
        raise TokenRefused("the grant has expired")
    if issued > now + SKEW or expires - issued > MAX_LIFETIME:
        raise TokenRefused("the grant's times are not those that the platform gives")
    # (4) it is for inference
    scopes = frozenset(claims.scope.split())
    if SCOPE not in scopes:
        raise TokenRefused(f"the grant does not hold the scope {SCOPE}")
    return Grant(
        subject=claims.sub,
        tenant=claims.tenant,
        scopes=scopes,
        packs=frozenset(claims.packs),
        expires=expires,
        kind=claims.kind,
        token_id=claims.jti,
    )
