"""Refusals of the token endpoint: problem documents that also carry RFC 6749's `error` member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tensorguard.errors import TensorGuardError


class OAuthError(TensorGuardError):
    """A refusal. `error` is RFC 6749's code (section 5.2)."""

    code = "oauth"
    status = 400
    remedy = "Read RFC 6749, section 5.2."
    error: ClassVar[str] = "invalid_request"

    @property
    def members(self) -> Mapping[str, str]:
        """What the problem document has in addition."""
        return {"error": self.error, "error_description": str(self)}


class InvalidRequest(OAuthError):
    code = "invalid_request"
    remedy = "Send the form that docs/formats/tokens.md describes, each parameter once."


class InvalidClient(OAuthError):
    code = "invalid_client"
    status = 401
    remedy = "Sign a fresh assertion with the enrolled key, or enrol the device again."
    error = "invalid_client"


class UnsupportedGrantType(OAuthError):
    code = "unsupported_grant_type"
    remedy = "Use client_credentials (devices) or token-exchange (people)."
    error = "unsupported_grant_type"


class InvalidScope(OAuthError):
    code = "invalid_scope"
    remedy = "Ask for scopes that the caller has; a serving grant takes serving:infer."
    error = "invalid_scope"


class InvalidTarget(OAuthError):
    code = "invalid_target"
    remedy = "Name tensorguard-serving as `resource`, and register a pack that it can serve."
    error = "invalid_target"
