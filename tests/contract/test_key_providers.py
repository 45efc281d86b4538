"""What every key provider promises. Subclass `KeyProviderContract`; override `provider`."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretBytes

from tensorguard.crypto.hybrid import SignatureInvalid
from tensorguard.keys import self_test
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import (
    Algorithm,
    BadKeyId,
    KeyExists,
    KeyId,
    KeyNotFound,
    KeyProvider,
    Purpose,
    WrapContext,
    WrongContext,
    WrongKeyUse,
    key_id,
)

SIGNING = [Algorithm.ed25519, Algorithm.es256, Algorithm.hybrid]
CONTEXT = WrapContext(purpose="database", tenant="acme")
NEW = key_id("fresh")


class KeyProviderContract:
    """Every provider passes this."""

    @pytest.fixture
    def provider(self) -> KeyProvider:
        raise AssertionError("a subclass gives the provider")

    @pytest.fixture
    def kek(self, provider: KeyProvider) -> KeyId:
        provider.create(NEW, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)
        return NEW

    @pytest.mark.parametrize("algorithm", SIGNING)
    def test_what_it_signs_verifies(self, provider: KeyProvider, algorithm: Algorithm) -> None:
        provider.create(NEW, algorithm=algorithm, purpose=Purpose.pack_signing)
        signature = provider.sign(NEW, b"message")
        public = provider.public_key(NEW, signature.version)
        assert public.verify(b"message", signature.value) == b"message"
        assert signature.algorithm is algorithm

    @pytest.mark.parametrize("algorithm", SIGNING)
    def test_another_message_or_a_cut_signature_does_not_verify(
        self, provider: KeyProvider, algorithm: Algorithm
    ) -> None:
        provider.create(NEW, algorithm=algorithm, purpose=Purpose.pack_signing)
        value = provider.sign(NEW, b"message").value
        public = provider.public_key(NEW)
        for message, forged in (
            (b"massage", value),
            (b"message", value[:-1]),
            (b"message", b""),
            (b"message", bytes([value[0] ^ 1]) + value[1:]),
            (b"message", value[:-1] + bytes([value[-1] ^ 1])),
        ):
            with pytest.raises(SignatureInvalid):
                public.verify(message, forged)

    def test_describes_and_lists_what_it_made(self, provider: KeyProvider) -> None:
        made = provider.create(NEW, algorithm=Algorithm.ed25519, purpose=Purpose.token_signing)
        assert provider.describe(NEW) == made
        assert made in provider.list_keys()
        assert made.version == 1

    def test_a_key_is_never_made_twice(self, provider: KeyProvider) -> None:
        provider.create(NEW, algorithm=Algorithm.ed25519, purpose=Purpose.token_signing)
        with pytest.raises(KeyExists):
            provider.create(NEW, algorithm=Algorithm.ed25519, purpose=Purpose.token_signing)

    def test_unknown_keys_are_not_found(self, provider: KeyProvider) -> None:
        absent = key_id("absent")
        for call in (
            lambda: provider.sign(absent, b""),
            lambda: provider.describe(absent),
            lambda: provider.public_key(absent),
            lambda: provider.wrap(absent, b"k", CONTEXT),
            lambda: provider.unwrap(absent, b"k", CONTEXT),
        ):
            with pytest.raises(KeyNotFound):
                call()

    @pytest.mark.parametrize("text", ["", "../x", "a/b", "A", "a.b", "-a", "a" * 64, "a\0", "ä"])
    def test_a_key_id_is_never_a_path(self, provider: KeyProvider, text: str) -> None:
        with pytest.raises(BadKeyId):
            provider.create(KeyId(text), algorithm=Algorithm.ed25519, purpose=Purpose.token_signing)

    def test_a_data_key_comes_back_under_its_context(
        self, provider: KeyProvider, kek: KeyId
    ) -> None:
        data_key = secrets.token_bytes(32)
        assert provider.unwrap(kek, provider.wrap(kek, data_key, CONTEXT), CONTEXT) == data_key

    def test_a_data_key_does_not_open_under_another_context(
        self, provider: KeyProvider, kek: KeyId
    ) -> None:
        wrapped = provider.wrap(kek, secrets.token_bytes(32), CONTEXT)
        for other in (WrapContext("database", "evil"), WrapContext("backup", "acme")):
            with pytest.raises(WrongContext):
                provider.unwrap(kek, wrapped, other)

    def test_a_tampered_or_cut_wrapped_key_does_not_open(
        self, provider: KeyProvider, kek: KeyId
    ) -> None:
        wrapped = provider.wrap(kek, secrets.token_bytes(32), CONTEXT)
        for forged in (
            b"",
            wrapped[:-1],
            wrapped + b"\0",
            wrapped[:-1] + bytes([wrapped[-1] ^ 1]),
            bytes([wrapped[0] ^ 1]) + wrapped[1:],
            b"\0" * 4096,
        ):
            with pytest.raises(WrongContext):
                provider.unwrap(kek, forged, CONTEXT)

    def test_a_key_does_only_what_it_is_for(self, provider: KeyProvider, kek: KeyId) -> None:
        with pytest.raises(WrongKeyUse):
            provider.sign(kek, b"message")
        signing = key_id("signing")
        provider.create(signing, algorithm=Algorithm.ed25519, purpose=Purpose.token_signing)
        with pytest.raises(WrongKeyUse):
            provider.wrap(signing, b"k" * 32, CONTEXT)

    def test_passes_the_self_test_twice(self, provider: KeyProvider) -> None:
        self_test.run(provider)
        self_test.run(provider)


class TestFileKeyProvider(KeyProviderContract):
    """The file provider."""

    @pytest.fixture
    def provider(self, tmp_path: Path) -> KeyProvider:
        return FileKeyProvider(
            tmp_path / "keys", SecretBytes(secrets.token_bytes(32)), now=lambda: datetime.now(UTC)
        )
