"""Credentials that were verified: bounded, and never kept as they are."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from tensorguard.platform.principal import Principal, PrincipalKind
from tensorguard.platform.telemetry.generations import Generations

CAPACITY: Final = 10_000  # credentials of a generation
JWT_PAYLOAD: Final = 1  # of the three parts


@dataclass(frozen=True, slots=True)
class Verified:
    """A credential that was good, until when, and the key that signed it."""

    principal: Principal
    expires: datetime | None  # None: its row says so
    kid: str | None


class _Expiry(msgspec.Struct):
    exp: int


class Credentials:
    """Verified credentials, by their hash."""

    def __init__(self) -> None:
        self._known: Generations[bytes, Verified] = Generations(CAPACITY)

    def find(self, header: str, *, now: datetime, kid: Callable[[], str]) -> Principal | None:
        """Return the caller, if this very credential was verified and still holds."""
        digest = _digest(header)
        known = self._known.get(digest)
        if known is None:
            return None
        if known.expires is not None and now < known.expires:
            if kid() == known.kid:
                return known.principal
        elif known.expires is None:
            return known.principal
        self._known.drop(digest)
        return None

    def remember(self, header: str, principal: Principal, *, kid: Callable[[], str]) -> None:
        """Keep a credential that `authenticate` accepted, if it is of a kind that may be kept."""
        if principal.kind is PrincipalKind.api_token:
            self._known.put(_digest(header), Verified(principal, None, None))
        elif principal.kind is PrincipalKind.device:
            payload = header.split(".")[JWT_PAYLOAD]
            claims = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
            expires = datetime.fromtimestamp(msgspec.json.decode(claims, type=_Expiry).exp, UTC)
            self._known.put(_digest(header), Verified(principal, expires, kid()))

    def forget(self, header: str) -> None:
        """Forget a credential that was refused later: the next request is looked at from the start."""
        self._known.drop(_digest(header))


def _digest(header: str) -> bytes:
    return hashlib.sha256(header.encode()).digest()
