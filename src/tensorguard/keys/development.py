"""Development only: secrets that were not given are made once and kept under TG_HOME, 0600."""

from __future__ import annotations

import dataclasses
import json
import secrets
from pathlib import Path

from pydantic import SecretBytes

from tensorguard.crypto import canonical
from tensorguard.crypto.files import private_folder, read_bounded, write_atomic
from tensorguard.errors import ConfigurationError, NotFound
from tensorguard.settings import Settings, default_home, secret_bytes

FILE = "development-secrets.json"
LIMIT = 4096  # bytes of the file


class DevelopmentSecretsUnusable(ConfigurationError):
    code = "development_secrets"
    remedy = f"Remove {FILE} and the development data beside it, and start again."


def _kept(home: Path) -> dict[str, str]:
    path = home / FILE
    try:
        kept = canonical.parse(read_bounded(path, limit=LIMIT, private=True), limit=LIMIT)
    except NotFound:
        kept = {name: secrets.token_hex(32) for name in ("TG_KEY_MASTER", "TG_SECRET_KEY")}
        write_atomic(path, json.dumps(kept).encode())
    if not isinstance(kept, dict) or kept.keys() != {"TG_KEY_MASTER", "TG_SECRET_KEY"}:
        raise DevelopmentSecretsUnusable(f"{path} does not hold the development secrets")
    return kept


def complete(settings: Settings) -> Settings:
    """Return `settings` with development defaults filled in; production is returned untouched."""
    if settings.production or settings.malformed:
        return settings
    home = private_folder(settings.home or default_home())
    changes: dict[str, object] = {"home": home}
    if settings.secret_key is None or settings.key_master is None:
        kept = _kept(home)
        changes["secret_key"] = settings.secret_key or _secret(kept["TG_SECRET_KEY"])
        changes["key_master"] = settings.key_master or _secret(kept["TG_KEY_MASTER"])
    if settings.key_provider is None:
        changes["key_provider"] = f"file:{home / 'keys'}"
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


def _secret(text: str) -> SecretBytes:
    return secret_bytes(text)
