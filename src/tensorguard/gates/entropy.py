"""Whether bytes can be a random secret: short, known, constant, counted up or textual ones cannot."""

from __future__ import annotations

import itertools
from typing import Final

SECRET_BYTES: Final = 32
MIN_DISTINCT: Final = 16  # 32 random bytes have fewer with a chance under 2⁻⁴⁰
KNOWN_DEFAULTS: Final = (
    b"changeme",
    b"secret",
    b"password",
    b"tensorguard",
    b"default",
    b"example",
)


def weakness(secret: bytes) -> str | None:
    """Say why `secret` cannot be 32 random bytes, or None."""
    steps = {(b - a) % 256 for a, b in itertools.pairwise(secret)}
    if len(secret) < SECRET_BYTES:
        return f"has {len(secret)} bytes, fewer than {SECRET_BYTES}"
    if any(word in secret.lower() for word in KNOWN_DEFAULTS):
        return "is a well-known default"
    if len(set(secret)) < MIN_DISTINCT or len(steps) < MIN_DISTINCT // 2:
        return "is constant, repeated or counted up"
    if any(
        secret == (secret[:n] * len(secret))[: len(secret)] for n in range(1, SECRET_BYTES // 2)
    ):
        return "repeats itself"
    if secret.isascii() and secret.decode().isprintable():
        return "is text, not random bytes"
    return None
