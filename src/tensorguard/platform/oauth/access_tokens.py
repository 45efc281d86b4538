"""Access tokens of devices and serving grants: signed by one Ed25519 key, for 10 minutes at most.

Both are JWTs of the key `token-signing`; `typ` and `aud` keep them apart. Every version of the key
that is not retired is published and believed, so rotating it ends no token; retiring a version ends
all that it signed. Revoking a device stops new tokens at once; an issued one ends within its life.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta

from tensorguard.identity.ca import ensure_key
from tensorguard.keys.provider import (
    Algorithm,
    KeyId,
    KeyNotFound,
    KeyProvider,
    KeyRetired,
    KeyState,
    PublicKey,
    Purpose,
    key_id,
)
from tensorguard.keys.signers import sign_jwt
from tensorguard.platform.db.base import new_id
from tensorguard.platform.oauth.issuer import issuer
from tensorguard.platform.principal import DEVICE_SCOPES, Principal, PrincipalKind, Scope
from tensorguard.platform.state import PlatformState
from tensorguard.wire import grants
from tensorguard.wire.jws import (
    MAX_KEYS,
    TokenRefused,
    UnknownSigner,
    read_header,
    verify,
)
from tensorguard.wire.oauth import ACCESS_TOKEN_KIND, PLATFORM_AUDIENCE

SIGNING_KEY: Final = key_id("token-signing")
LIFETIME: Final = timedelta(minutes=10)
SKEW: Final = timedelta(seconds=5)  # between the platform's own processes
MAX_DIGITS: Final = 9  # of a version number
PUBLISHED: Final = frozenset({KeyState.pending, KeyState.active, KeyState.decrypt_only})


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token that was just signed."""

    value: str
    token_id: str
    expires_in: int
    kid: str


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    iss: Annotated[str, Meta(max_length=512)]
    sub: grants.Id
    aud: Literal["tensorguard-platform"]
    tenant: grants.Id
    kind: Literal["device"]
    scope: Annotated[str, Meta(max_length=256)]
    iat: grants.Seconds
    exp: grants.Seconds
    jti: grants.Id


def signing_key(keys: KeyProvider) -> KeyId:
    """Return the token key, made if this is the first use."""
    return ensure_key(keys, SIGNING_KEY, Algorithm.ed25519, Purpose.token_signing)


def jwks(keys: KeyProvider) -> dict[str, list[dict[str, str]]]:
    """Return the public keys that verify, newest first, as a JWK set (RFC 7517).

    A pending version is among them, so that gateways know it before it signs. Of more than a gateway
    reads, the oldest are left out.
    """
    key = signing_key(keys)
    numbers = [info.version for info in keys.versions(key) if info.state in PUBLISHED]
    newest = sorted(numbers, reverse=True)[:MAX_KEYS]
    return {"keys": [keys.public_key(key, number).jwk() for number in newest]}


def _issue(
    state: PlatformState, claims: dict[str, object], *, kind: str, now: datetime
) -> IssuedToken:
    key = signing_key(state.keys)
    token_id = new_id()
    issued = int(now.timestamp())
    full = {
        **claims,
        "iss": issuer(state.settings),
        "iat": issued,
        "exp": issued + int(LIFETIME.total_seconds()),
        "jti": token_id,
    }
    value = sign_jwt(state.keys, key, full, kind=kind)
    kid = read_header(value).kid or ""  # what signed it, also while the key rotates
    return IssuedToken(value, token_id, int(LIFETIME.total_seconds()), kid)


def issue_access_token(
    state: PlatformState,
    *,
    device_id: str,
    tenant_id: str,
    scopes: Collection[Scope],
    now: datetime,
) -> IssuedToken:
    """Sign a device's token for the platform. The caller has authenticated the device."""
    claims: dict[str, object] = {
        "sub": device_id,
        "aud": PLATFORM_AUDIENCE,
        "tenant": tenant_id,
        "kind": PrincipalKind.device.value,
        "scope": " ".join(sorted(scopes)),
    }
    return _issue(state, claims, kind=ACCESS_TOKEN_KIND, now=now)


def issue_grant(
    state: PlatformState,
    *,
    subject: str,
    kind: PrincipalKind,
    tenant_id: str,
    packs: Collection[str],
    now: datetime,
) -> IssuedToken:
    """Sign a serving grant for these packs. The caller has authenticated the subject."""
    claims: dict[str, object] = {
        "sub": subject,
        "aud": grants.AUDIENCE,
        "tenant": tenant_id,
        "kind": kind.value,
        "scope": grants.SCOPE,
        "packs": sorted(packs),
    }
    return _issue(state, claims, kind=grants.TYPE, now=now)


def verify_access_token(state: PlatformState, token: str) -> Principal:
    """Return the device that `token` speaks for. Raises `TokenRefused`.

    It asks no database: a revoked device's last token ends within its life.
    """
    # (1) signed by a version of our key that is not retired, and an access token
    public = _signer(state.keys, read_header(token).kid)
    key = Ed25519PublicKey.from_public_bytes(public.value)
    payload = verify(token, key, kinds={ACCESS_TOKEN_KIND})
    # (2) for the platform, with every claim, from us
    try:
        claims = msgspec.json.decode(payload, type=_Claims)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise TokenRefused("the token is no access token of the platform") from error
    if claims.iss != issuer(state.settings):
        raise TokenRefused("the token comes from another platform")
    # (3) now is within its life
    now = state.now()
    expires = datetime.fromtimestamp(claims.exp, UTC)
    issued = datetime.fromtimestamp(claims.iat, UTC)
    if now >= expires:
        raise TokenRefused("the token has expired")
    if issued > now + SKEW or expires - issued > LIFETIME:
        raise TokenRefused("the token's times are not those that the platform gives")
    # (4) a device has a device's scopes and no other
    scopes = frozenset(scope for scope in DEVICE_SCOPES if scope in claims.scope.split())
    return Principal(
        id=claims.sub,
        kind=PrincipalKind.device,
        tenant_id=claims.tenant,
        name=claims.sub,
        scopes=scopes,
        device_id=claims.sub,
    )


def _signer(keys: KeyProvider, kid: str | None) -> PublicKey:
    key = signing_key(keys)
    name, _, number = (kid or "").rpartition(".")
    if name != key or not number.isascii() or not number.isdigit() or len(number) > MAX_DIGITS:
        raise UnknownSigner("the token names no key that is known here")
    state = {info.version: info.state for info in keys.versions(key)}.get(int(number))
    if state not in {KeyState.active, KeyState.decrypt_only}:
        raise UnknownSigner("the key that signed this token verifies no more")
    try:
        return keys.public_key(key, int(number))
    except (KeyNotFound, KeyRetired) as error:  # destroyed a moment ago
        raise UnknownSigner("the key that signed this token verifies no more") from error
