"""`pkcs11:` URIs (RFC 7512): they say where the token and its PIN are, and never hold the PIN."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from pydantic import SecretStr

from tensorguard.crypto.files import read_bounded
from tensorguard.errors import TensorGuardError
from tensorguard.keys.provider import PREFIX_PATTERN, KeyProviderUnusable

MAX_PIN = 256  # bytes
MAX_URI = 2048
PATH_ATTRIBUTES = frozenset({"token", "serial", "object"})
QUERY_ATTRIBUTES = frozenset({"module-path", "pin-source"})
DESCRIPTOR = re.compile(r"[0-9]{1,5}")


class UnusableUri(KeyProviderUnusable):
    code = "key_provider_uri"
    remedy = (
        "Write pkcs11:token=LABEL;object=tensorguard?module-path=/path/to/module.so"
        "&pin-source=file:/path/to/pin (or pin-source=fd:NUMBER)."
    )


@dataclass(frozen=True, slots=True)
class TokenUri:
    """Which module, which token, where its PIN is, and what our objects' labels begin with."""

    module: Path
    label: str | None
    serial: str | None
    prefix: str
    pin_source: str

    def pin(self) -> SecretStr:
        """Read the PIN: a file is read anew each time, a descriptor once in this process."""
        kind, _, rest = self.pin_source.partition(":")
        if kind == "fd":
            return _descriptor(int(rest))
        try:
            raw = read_bounded(Path(rest), limit=MAX_PIN, private=True)
        except TensorGuardError as error:
            raise KeyProviderUnusable(f"the PIN cannot be read: {error}") from error
        return _pin(raw)


def parse(rest: str) -> TokenUri:
    """Read what follows `pkcs11:`. Raises `UnusableUri`."""
    if len(rest) > MAX_URI:
        raise UnusableUri("the URI is too long")
    path, _, query = rest.partition("?")
    where = _attributes(path, ";", PATH_ATTRIBUTES)
    how = _attributes(query, "&", QUERY_ATTRIBUTES)
    if not where.get("token") and not where.get("serial"):
        raise UnusableUri("the URI names no token")
    module = Path(how.get("module-path", ""))
    if not module.is_absolute():
        raise UnusableUri("module-path must be an absolute path")
    prefix = where.get("object", "tensorguard")
    if not PREFIX_PATTERN.fullmatch(prefix):
        raise UnusableUri("object must be 1 to 32 of a-z, 0-9, _ and -")
    source = _source(how.get("pin-source", ""))
    return TokenUri(module, where.get("token"), where.get("serial"), prefix, source)


def _attributes(text: str, separator: str, allowed: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise UnusableUri("a PIN does not belong into a URI: use pin-source")
        if name not in allowed or not equals or name in found:
            raise UnusableUri(f"the attribute {name[:32]!r} is not supported here, or is repeated")
        try:
            found[name] = unquote(value, errors="strict")
        except UnicodeDecodeError as error:
            raise UnusableUri(f"the attribute {name} is not UTF-8") from error
    return found


def _source(text: str) -> str:
    kind, _, rest = text.partition(":")
    if kind == "file" and Path(rest.removeprefix("//")).is_absolute():
        return f"file:{rest.removeprefix('//')}"
    if text.startswith("/"):
        return f"file:{text}"
    if kind == "fd" and DESCRIPTOR.fullmatch(rest):
        return text
    raise UnusableUri("pin-source must be file:/absolute/path or fd:NUMBER")


@cache  # what a pipe gave is not there a second time
def _descriptor(number: int) -> SecretStr:
    chunks, size = [], 0
    try:
        while size <= MAX_PIN and (chunk := os.read(number, MAX_PIN + 1 - size)):
            chunks.append(chunk)
            size += len(chunk)
    except OSError as error:
        raise KeyProviderUnusable(f"the descriptor {number} of the PIN cannot be read") from error
    return _pin(b"".join(chunks))


def _pin(raw: bytes) -> SecretStr:
    try:
        text = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise KeyProviderUnusable("the PIN is not UTF-8") from error
    if not 0 < len(text) <= MAX_PIN:
        raise KeyProviderUnusable("the PIN is empty or too long")
    return SecretStr(text)
