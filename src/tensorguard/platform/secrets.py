"""Keys derived from TG_SECRET_KEY: one per use, so that none can stand in for another."""

from __future__ import annotations

import hashlib
import hmac
import secrets as random

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretBytes

RANDOM_BYTES = 32  # 256 bits: no guessing


class Secrets:
    """HKDF-SHA256 children of the root secret (RFC 5869)."""

    def __init__(self, root: SecretBytes) -> None:
        self._root = root

    def derive(self, use: str) -> bytes:
        """Return the 32-byte key of one use, such as `cursor` or `csrf`."""
        hkdf = HKDF(hashes.SHA256(), 32, salt=None, info=f"tensorguard/{use}".encode())
        return hkdf.derive(self._root.get_secret_value())

    def pepper(self, token: str) -> str:
        """Return what the database stores of a random bearer token: its keyed hash, in hex."""
        return hmac.digest(self.derive("token-pepper"), token.encode(), hashlib.sha256).hex()

    def mac(self, use: str, message: bytes) -> bytes:
        """Return HMAC-SHA256 of `message` under the key of `use`."""
        return hmac.digest(self.derive(use), message, hashlib.sha256)


def random_token(prefix: str) -> str:
    """Return a fresh bearer token `prefix_…` with 256 random bits."""
    return f"{prefix}_{random.token_urlsafe(RANDOM_BYTES)}"
