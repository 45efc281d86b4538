"""A provider is chosen by its URI, from one table, and nothing falls back."""

from __future__ import annotations

import sys

import pytest

from tensorguard.keys.provider import KeyProviderUnusable
from tensorguard.keys.registry import SUPPORTED_PROVIDERS, ProviderNotInstalled, open_provider
from tensorguard.settings import Settings

URIS = {
    "pkcs11": ("pkcs11", "pkcs11:token=tg?module-path=/m.so&pin-source=file:/pin"),
    "awskms": ("boto3", "awskms:eu-central-1/tensorguard"),
    "vault": ("hvac", "vault:https://vault.example/transit?token-file=/token"),
}


def test_the_table_holds_what_the_documentation_names() -> None:
    assert set(SUPPORTED_PROVIDERS) == {"file", "pkcs11", "awskms", "vault"}


@pytest.mark.parametrize("scheme", URIS)
def test_a_missing_extra_is_named_and_nothing_else_is_used(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, uri = URIS[scheme]
    for name in [n for n in sys.modules if n.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    for module in [m for m in sys.modules if m.startswith("tensorguard.keys.")]:
        if module.rpartition(".")[2].split("_")[0] in {"pkcs11", "aws", "vault"}:
            monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ProviderNotInstalled, match=rf"pip install 'tensorguard\[{scheme}\]'"):
        open_provider(Settings(key_provider=uri))


@pytest.mark.parametrize(
    "uri", ["", "file", "file:", "azure:x", "gcpkms:x", "FILE:/x", "pkcs11", "x" * 5000]
)
def test_what_is_not_in_the_table_is_refused(uri: str) -> None:
    with pytest.raises(KeyProviderUnusable):
        open_provider(Settings(key_provider=uri))
