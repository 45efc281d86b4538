"""Compact JWS (RFC 7515), strictly: the key decides the algorithm, and a header may say no more.

A header with `jku`, `jwk`, `x5u`, `crit` or anything else than `alg`, `kid` and `typ` is refused: what
a token says about its own key is never believed (RFC 8725, sections 3.1, 3.5 and 3.10).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from typing import Annotated, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta

from tensorguard.errors import MalformedInput, Unauthenticated

MAX_TOKEN: Final = 8192  # characters; a grant for 64 packs has about 6,200
MAX_HEADER: Final = 512  # characters of the encoded header
MAX_KEYS: Final = 32  # of a key set; ours has one
MAX_KEY_SET: Final = 64 * 1024  # bytes
PARTS: Final = 3
COORDINATE: Final = 32  # bytes of a P-256 coordinate or an Ed25519 key

VerifyingKey = ec.EllipticCurvePublicKey | Ed25519PublicKey


class TokenRefused(Unauthenticated):
    code = "token_refused"
    remedy = "Get a fresh token; this one is malformed, expired or not meant for this server."


class UnknownSigner(TokenRefused):
    """The key id is in no key set at hand; a verifier may fetch the set anew, once."""

    code = "unknown_signer"
    remedy = "Get a fresh token; the key that signed this one is not known here."


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a header may hold."""

    alg: Annotated[str, Meta(max_length=16)]
    kid: Annotated[str, Meta(max_length=128)] | None = None
    typ: Annotated[str, Meta(max_length=64)] | None = None


def algorithm_of(key: VerifyingKey) -> str:
    """Return the one algorithm of `key`. Raises `MalformedInput` for another curve."""
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    if isinstance(key.curve, ec.SECP256R1):
        return "ES256"
    raise MalformedInput("a token key is P-256 or Ed25519")


def read_header(token: str) -> Header:
    """Return the unverified header, to find the key by. Raises `TokenRefused`."""
    if len(token) > MAX_TOKEN:
        raise TokenRefused(f"a token has at most {MAX_TOKEN} characters")
    encoded, *rest = token.split(".")
    if len(rest) != PARTS - 1 or len(encoded) > MAX_HEADER or not token.isascii():
        raise TokenRefused("this is not a compact JWS")
    try:
        return msgspec.json.decode(_unbase64(encoded), type=Header)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise TokenRefused("the token's header cannot be read") from error


def verify(token: str, key: VerifyingKey, *, kinds: Collection[str | None]) -> bytes:
    """Return the payload of a token of one of `kinds` (its `typ`) that `key` signed.

    Raises `TokenRefused`.
    """
    header = read_header(token)
    algorithm = algorithm_of(key)
    if header.alg != algorithm:
        raise TokenRefused("the token's algorithm is not that of the key")
    if header.typ not in kinds:
        raise TokenRefused("this is another kind of token")
    try:
        payload: bytes = jwt.PyJWS().decode_complete(token, key, algorithms=[algorithm])["payload"]
    except jwt.PyJWTError as error:
        raise TokenRefused("the token's signature does not match") from error
    return payload


class _Jwk(msgspec.Struct, frozen=True, kw_only=True):
    kty: str
    crv: str
    kid: Annotated[str, Meta(min_length=1, max_length=128)]
    x: Annotated[str, Meta(max_length=64)]
    y: Annotated[str, Meta(max_length=64)] | None = None


class _Jwks(msgspec.Struct, frozen=True):
    keys: Annotated[tuple[_Jwk, ...], Meta(min_length=1, max_length=MAX_KEYS)]


class KeySet:
    """The public keys of one issuer, by key id. An empty set is refused."""

    def __init__(self, keys: dict[str, VerifyingKey]) -> None:
        if not keys:
            raise MalformedInput("a key set without a key verifies nothing")
        self._keys = dict(keys)

    @classmethod
    def from_json(cls, data: bytes) -> KeySet:
        """Parse a JWK set (RFC 7517, 8037). Raises `MalformedInput`."""
        if len(data) > MAX_KEY_SET:
            raise MalformedInput(f"a key set has at most {MAX_KEY_SET} bytes")
        try:
            entries = msgspec.json.decode(data, type=_Jwks).keys
            keys = {entry.kid: _public_key(entry) for entry in entries}
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise MalformedInput("this is not a set of P-256 and Ed25519 keys") from error
        if len(keys) != len(entries):
            raise MalformedInput("the key set names one key id twice")
        return cls(keys)

    def key(self, kid: str | None) -> VerifyingKey:
        """Return the key `kid`. Raises `UnknownSigner`."""
        key = self._keys.get(kid) if kid is not None else None
        if key is None:
            raise UnknownSigner("the token names no key that is known here")
        return key


def _public_key(entry: _Jwk) -> VerifyingKey:
    x = _coordinate(entry.x)
    if (entry.kty, entry.crv) == ("OKP", "Ed25519") and entry.y is None:
        return Ed25519PublicKey.from_public_bytes(x)
    if (entry.kty, entry.crv) == ("EC", "P-256") and entry.y is not None:
        point = b"\x04" + x + _coordinate(entry.y)
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    raise ValueError("unknown kind of key")


def _coordinate(text: str) -> bytes:
    raw = _unbase64(text)
    if len(raw) != COORDINATE:
        raise ValueError("wrong length")
    return raw


def _unbase64(text: str) -> bytes:
    padded = text.encode("ascii") + b"=" * (-len(text) % 4)
    try:
        return base64.b64decode(padded, altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
