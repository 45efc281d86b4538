"""A `private_key_jwt` (RFC 7523): signed by the device's own key, for us, for a minute, once."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from tensorguard.platform.oauth.errors import InvalidClient
from tensorguard.wire.jws import TokenRefused, VerifyingKey, read_header, verify
from tensorguard.wire.oauth import ASSERTION_KINDS, MAX_ASSERTION_SECONDS, MAX_JTI

SKEW: Final = timedelta(seconds=30)  # a device's clock may lead by that much
MAX_AGE: Final = timedelta(minutes=5)  # of `iat`, if one is given

DeviceId = Annotated[str, Meta(pattern=r"^[0-9a-f-]{1,36}$")]
Text = Annotated[str, Meta(min_length=1, max_length=512)]
Seconds = Annotated[int, Meta(ge=0, le=1 << 37)]


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The claims of an assertion; unknown ones are ignored (RFC 7519, section 4)."""

    iss: DeviceId
    sub: DeviceId
    aud: Text | Annotated[tuple[Text, ...], Meta(min_length=1, max_length=1)]
    exp: Seconds
    jti: Annotated[str, Meta(min_length=8, max_length=MAX_JTI)]
    iat: Seconds | None = None
    nbf: Seconds | None = None

    @property
    def audience(self) -> str:
        """The one audience."""
        return self.aud if isinstance(self.aud, str) else self.aud[0]


@dataclass(frozen=True, slots=True)
class Assertion:
    """An assertion that verified; whether it is used for the first time is for the database."""

    device_id: str
    jti_sha256: str
    expires: datetime


def claimed_device(token: str) -> str:
    """Return the device that the assertion claims to come from, unverified, to find its key by."""
    try:
        read_header(token)
        payload = token.split(".")[1]
        raw = base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True)
        return _claims(raw).sub
    except (TokenRefused, binascii.Error, ValueError) as error:
        raise InvalidClient("the client assertion cannot be read") from error


def verify_assertion(
    token: str,
    key: VerifyingKey,
    *,
    device_id: str,
    audiences: Collection[str],
    now: datetime,
) -> Assertion:
    """Return the assertion of this device once all but its novelty holds. Raises `InvalidClient`."""
    # (1) signed by the device's key, with that key's algorithm
    try:
        claims = _claims(verify(token, key, kinds=ASSERTION_KINDS))
    except TokenRefused as error:
        raise InvalidClient("the client assertion does not verify") from error
    # (2) the device speaks for itself
    if claims.iss != device_id or claims.sub != device_id:
        raise InvalidClient("iss and sub are not both the device")
    # (3) it speaks to us
    if claims.audience not in audiences:
        raise InvalidClient("the client assertion is for another audience")
    # (4) it is in time, and ends soon
    expires = datetime.fromtimestamp(claims.exp, UTC)
    if now >= expires:
        raise InvalidClient("the client assertion has expired; check the device's clock")
    if expires > now + timedelta(seconds=MAX_ASSERTION_SECONDS):
        raise InvalidClient(f"exp is more than {MAX_ASSERTION_SECONDS} s ahead")
    if claims.nbf is not None and datetime.fromtimestamp(claims.nbf, UTC) > now + SKEW:
        raise InvalidClient("the client assertion is not valid yet")
    if claims.iat is not None:
        issued = datetime.fromtimestamp(claims.iat, UTC)
        if not now - MAX_AGE <= issued <= now + SKEW:
            raise InvalidClient("iat is not now; check the device's clock")
    return Assertion(device_id, hashlib.sha256(claims.jti.encode()).hexdigest(), expires)


def _claims(payload: bytes) -> Claims:
    try:
        return msgspec.json.decode(payload, type=Claims)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidClient("the client assertion's claims are incomplete or malformed") from error
