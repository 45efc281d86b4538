"""URI scheme → key provider. The whole plugin system is this table; nothing falls back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from tensorguard.crypto.files import private_folder
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import KeyProvider, KeyProviderUnusable
from tensorguard.settings import Settings

Factory = Callable[[str, Settings], KeyProvider]


class ProviderNotInstalled(KeyProviderUnusable):
    code = "key_provider_missing"
    remedy = "Install the extra that the detail names, in this environment."


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ProviderNotInstalled(
            f"the key provider {name} is not installed: pip install 'tensorguard[{name}]'"
        ) from error


def _file(rest: str, settings: Settings) -> KeyProvider:
    if not rest:
        raise KeyProviderUnusable("file: needs a folder, as in file:/var/lib/tensorguard/keys")
    return FileKeyProvider(
        Path(rest).expanduser(),
        settings.need("key_master"),
        now=_now,
        next_master=settings.key_master_new,
    )


def _pkcs11(rest: str, settings: Settings) -> KeyProvider:
    with _extra("pkcs11"):
        from tensorguard.keys.pkcs11 import open_pkcs11
    locks = private_folder(settings.home / "locks") if settings.home else None
    return open_pkcs11(rest, now=_now, locks=locks)


def _awskms(rest: str, _: Settings) -> KeyProvider:
    with _extra("awskms"):
        from tensorguard.keys.aws_kms import open_kms
    return open_kms(rest, now=_now)


def _vault(rest: str, _: Settings) -> KeyProvider:
    with _extra("vault"):
        from tensorguard.keys.vault import open_vault
    return open_vault(rest, now=_now)


SUPPORTED_PROVIDERS: Mapping[str, Factory] = MappingProxyType(
    {"file": _file, "pkcs11": _pkcs11, "awskms": _awskms, "vault": _vault}
)


def open_provider(settings: Settings) -> KeyProvider:
    """Open the provider that `TG_KEY_PROVIDER` names. Raises `KeyProviderUnusable`."""
    uri: str = settings.need("key_provider")
    scheme, colon, rest = uri.partition(":")
    factory = SUPPORTED_PROVIDERS.get(scheme) if colon else None
    if factory is None:
        known = ", ".join(sorted(SUPPORTED_PROVIDERS))
        raise KeyProviderUnusable(f"no key provider is named {scheme[:32]!r}; supported: {known}")
    return factory(rest, settings)
