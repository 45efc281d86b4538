"""Every error TensorGuard raises on purpose: each has a code, an HTTP status and a remedy.

    TensorGuardError
    ├── ConfigurationError        the operator must change something (process exit code 78)
    │   └── GateFailure           one or more production gates refused to start
    ├── InputError                what the caller sent is wrong; nothing was stored
    │   ├── MalformedInput        400  it cannot be read
    │   ├── TooLarge              413  it exceeds a limit
    │   ├── UnsupportedMedia      415  its content type or encoding is not spoken here
    │   └── Conflict              409  it contradicts what is stored
    ├── Unauthenticated           401
    ├── Forbidden                 403
    ├── NotFound                  404  also raised for "exists, but not yours"
    ├── VerificationError         422  a signature, a digest or a chain did not check out
    └── Unavailable               503  try again later
        └── Throttled             429

A feature defines its own subclasses beside itself.
"""

from __future__ import annotations

from typing import ClassVar

EX_CONFIG = 78  # sysexits.h: configuration error


class TensorGuardError(Exception):
    """The base: a stable `code`, an HTTP `status`, and in `remedy` what to do next."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    remedy: ClassVar[str] = "Report this with the request id."

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in ("code", "remedy"):
            if name not in vars(cls):
                raise TypeError(f"{cls.__name__} must define `{name}`")


class ConfigurationError(TensorGuardError):
    code = "configuration"
    remedy = "Run `tensorguard doctor` and fix the settings it names."


class InputError(TensorGuardError):
    code = "bad_input"
    status = 400
    remedy = "Correct the request as the detail says and send it again."


class MalformedInput(InputError):
    code = "malformed"
    remedy = "Send what the format's specification in docs/formats describes."


class TooLarge(InputError):
    code = "too_large"
    status = 413
    remedy = "Send less at a time, or ask the operator to raise the TG_MAX_* limit that is named."


class UnsupportedMedia(InputError):
    code = "unsupported_media"
    status = 415
    remedy = "Use a content type and encoding that this endpoint documents."


class Conflict(InputError):
    code = "conflict"
    status = 409
    remedy = "Read the current state, then decide again."


class Unauthenticated(TensorGuardError):
    code = "unauthenticated"
    status = 401
    remedy = "Sign in, or present a token that has not expired or been revoked."


class Forbidden(TensorGuardError):
    code = "forbidden"
    status = 403
    remedy = "Ask an administrator of your tenant for the scope that is named."


class NotFound(TensorGuardError):
    code = "not_found"
    status = 404
    remedy = "Check the identifier and the tenant you are signed in to."


class VerificationError(TensorGuardError):
    code = "verification_failed"
    status = 422
    remedy = "Do not use this object. Fetch it again from its signer."


class Unavailable(TensorGuardError):
    """The service cannot do this now. `retry_after` is in seconds."""

    code = "unavailable"
    status = 503
    remedy = "Try again after the time given in Retry-After."

    def __init__(self, detail: str, *, retry_after: int = 5) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Throttled(Unavailable):
    code = "throttled"
    status = 429
    remedy = "Slow down; try again after the time given in Retry-After."
