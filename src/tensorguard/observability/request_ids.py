"""A request id is taken from the caller only if it is harmless; otherwise it is made here."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

HEADER = "x-request-id"
_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,64}")  # no space, quote or line break can reach a log

current: ContextVar[str] = ContextVar("tensorguard_request_id", default="-")


def accept(offered: str | None) -> str:
    """Return `offered` if it is harmless, else a fresh id."""
    if offered is not None and _HARMLESS.fullmatch(offered):
        return offered
    return uuid.uuid4().hex
