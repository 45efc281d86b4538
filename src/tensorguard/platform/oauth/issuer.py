"""Who issues tokens, and under which URLs an assertion may address the token endpoint."""

from __future__ import annotations

from typing import Final

from fastapi import Request

from tensorguard.settings import Settings
from tensorguard.wire.oauth import TOKEN_PATH

DEVELOPMENT_ISSUER: Final = "urn:tensorguard:platform"  # production has TG_PUBLIC_URL, by its gate


def issuer(settings: Settings) -> str:
    """Return the `iss` of every token."""
    return settings.public_url or DEVELOPMENT_ISSUER


def endpoints_base(request: Request, settings: Settings) -> str:
    """Return the URL that callers use: `TG_PUBLIC_URL`, and only in development what they sent."""
    return settings.public_url or str(request.base_url).rstrip("/")


def audiences(request: Request, settings: Settings) -> frozenset[str]:
    """Return what an assertion's `aud` may be (RFC 7523, section 3, item 3)."""
    base = endpoints_base(request, settings)
    return frozenset({base, base + TOKEN_PATH, issuer(settings)})
