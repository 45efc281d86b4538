"""URI scheme → key provider. The whole plugin system is this table; nothing falls back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import KeyProvider, KeyProviderUnusable
from tensorguard.settings import Settings

Factory = Callable[[str, Settings], KeyProvider]


def _now() -> datetime:
    return datetime.now(UTC)


def _file(rest: str, settings: Settings) -> KeyProvider:
    if not rest:
        raise KeyProviderUnusable("file: needs a folder, as in file:/var/lib/tensorguard/keys")
    return FileKeyProvider(Path(rest).expanduser(), settings.need("key_master"), now=_now)


SUPPORTED_PROVIDERS: Mapping[str, Factory] = MappingProxyType({"file": _file})


def open_provider(settings: Settings) -> KeyProvider:
    """Open the provider that `TG_KEY_PROVIDER` names. Raises `KeyProviderUnusable`."""
    uri: str = settings.need("key_provider")
    scheme, colon, rest = uri.partition(":")
    factory = SUPPORTED_PROVIDERS.get(scheme) if colon else None
    if factory is None:
        known = ", ".join(sorted(SUPPORTED_PROVIDERS))
        raise KeyProviderUnusable(f"no key provider is named {scheme[:32]!r}; supported: {known}")
    return factory(rest, settings)
