"""What every key provider promises. Subclass `KeyProviderContract`; override `provider`."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest
from pydantic import SecretBytes

from support.keys import (
    CONTEXT,
    Clock,
    bao,
    credentials,
    kms_endpoint,
    prefix,
    private_file,
    softhsm,
)
from tensorguard.crypto.hybrid import SignatureInvalid
from tensorguard.keys import self_test
from tensorguard.keys.aws_kms import AwsKmsProvider, client
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.pkcs11 import Pkcs11KeyProvider
from tensorguard.keys.pkcs11_token import open_token
from tensorguard.keys.pkcs11_uri import parse
from tensorguard.keys.provider import (
    Algorithm,
    BadKeyId,
    BadTransition,
    KeyDestroyed,
    KeyDisabled,
    KeyExists,
    KeyId,
    KeyNotFound,
    KeyProvider,
    KeyRetired,
    KeyState,
    Purpose,
    Signature,
    WrapContext,
    WrongContext,
    WrongKeyUse,
    key_id,
)
from tensorguard.keys.vault import open_vault

SIGNING = [Algorithm.ed25519, Algorithm.es256, Algorithm.hybrid]
NEW = key_id("fresh")
WEEK = timedelta(days=7)  # the shortest delay that every custody offers


class KeyProviderContract:
    """Every provider passes this."""

    @pytest.fixture
    def provider(self) -> KeyProvider:
        raise AssertionError("a subclass gives the provider")

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

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

    # --- the life of a key ----------------------------------------------------------------

    @pytest.mark.parametrize("algorithm", SIGNING)
    def test_a_rotated_key_signs_anew_and_verifies_all(
        self, provider: KeyProvider, algorithm: Algorithm
    ) -> None:
        provider.create(NEW, algorithm=algorithm, purpose=Purpose.pack_signing)
        old = provider.sign(NEW, b"message")
        assert provider.rotate(NEW).version == 2
        new = provider.sign(NEW, b"message")
        assert (old.version, new.version) == (1, 2)
        assert provider.public_key(NEW).version == 2
        assert provider.public_key(NEW, 1).value != provider.public_key(NEW, 2).value
        for signature in (old, new):
            assert provider.verify(NEW, b"message", signature) == b"message"
        with pytest.raises(SignatureInvalid):
            provider.verify(NEW, b"message", replace(old, version=2))
        with pytest.raises(SignatureInvalid):
            provider.verify(NEW, b"message", replace(old, key_id=key_id("another")))
        states = [(v.version, v.state) for v in provider.versions(NEW)]
        assert states == [(1, KeyState.decrypt_only), (2, KeyState.active)]

    def test_old_material_opens_until_it_is_retired(
        self, provider: KeyProvider, kek: KeyId
    ) -> None:
        data_key = secrets.token_bytes(32)
        old = provider.wrap(kek, data_key, CONTEXT)
        provider.rotate(kek)
        assert provider.unwrap(kek, old, CONTEXT) == data_key
        new = provider.rewrap(kek, old, CONTEXT)
        assert new[:4] != old[:4]
        assert provider.retire(kek, 1).state is KeyState.retired
        with pytest.raises(KeyRetired):
            provider.unwrap(kek, old, CONTEXT)
        assert provider.unwrap(kek, new, CONTEXT) == data_key

    def test_a_blob_of_another_version_does_not_open(
        self, provider: KeyProvider, kek: KeyId
    ) -> None:
        wrapped = provider.wrap(kek, secrets.token_bytes(32), CONTEXT)
        provider.rotate(kek)
        for number in (0, 2, 3, 2**32 - 1):
            with pytest.raises(WrongContext):
                provider.unwrap(kek, number.to_bytes(4, "big") + wrapped[4:], CONTEXT)

    def test_a_data_key_is_fresh_and_bound(self, provider: KeyProvider, kek: KeyId) -> None:
        one, two = provider.data_key(kek, CONTEXT), provider.data_key(kek, CONTEXT)
        assert len(one.plaintext) == 32
        assert one.plaintext != two.plaintext
        assert provider.unwrap(kek, one.wrapped, CONTEXT) == one.plaintext
        with pytest.raises(WrongContext):
            provider.unwrap(kek, one.wrapped, WrapContext("database", "evil"))

    def test_a_staged_version_is_published_before_it_signs(self, provider: KeyProvider) -> None:
        provider.create(NEW, algorithm=Algorithm.ed25519, purpose=Purpose.token_signing)
        staged = provider.stage(NEW)
        assert (staged.version, staged.state) == (2, KeyState.pending)
        published = provider.public_key(NEW, 2)
        assert provider.sign(NEW, b"m").version == 1
        with pytest.raises(BadTransition):
            provider.stage(NEW)
        assert provider.rotate(NEW).version == 2
        assert published.verify(b"m", provider.sign(NEW, b"m").value) == b"m"

    def test_a_pending_version_opens_nothing(self, provider: KeyProvider, kek: KeyId) -> None:
        wrapped = provider.wrap(kek, b"k" * 32, CONTEXT)
        provider.stage(kek)
        with pytest.raises(WrongContext):
            provider.unwrap(kek, (2).to_bytes(4, "big") + wrapped[4:], CONTEXT)

    def test_a_disabled_key_does_nothing_until_it_is_enabled(
        self, provider: KeyProvider, kek: KeyId
    ) -> None:
        signing = key_id("signing")
        provider.create(signing, algorithm=Algorithm.es256, purpose=Purpose.fleet_ca)
        signature = provider.sign(signing, b"m")
        wrapped = provider.wrap(kek, b"k" * 32, CONTEXT)
        for key in (signing, kek):
            assert provider.disable(key).disabled
            assert provider.disable(key).disabled
        for use in (
            lambda: provider.sign(signing, b"m"),
            lambda: provider.rotate(signing),
            lambda: provider.wrap(kek, b"k" * 32, CONTEXT),
            lambda: provider.unwrap(kek, wrapped, CONTEXT),
            lambda: provider.data_key(kek, CONTEXT),
        ):
            with pytest.raises(KeyDisabled):
                use()
        assert provider.verify(signing, b"m", signature) == b"m"
        for key in (signing, kek):
            assert not provider.enable(key).disabled
        assert provider.unwrap(kek, wrapped, CONTEXT) == b"k" * 32
        assert provider.sign(signing, b"m").version == 1

    def test_destruction_waits_and_can_be_called_off(
        self, provider: KeyProvider, kek: KeyId, clock: Clock
    ) -> None:
        wrapped = provider.wrap(kek, b"k" * 32, CONTEXT)
        provider.rotate(kek)
        provider.retire(kek, 1)
        waiting = provider.destroy(kek, 1, delay=WEEK)
        assert waiting.state is KeyState.retired
        assert waiting.destroy_at is not None
        assert abs(waiting.destroy_at - clock() - WEEK) < timedelta(minutes=5)
        assert provider.purge() == ()
        assert provider.cancel_destruction(kek, 1).destroy_at is None
        with pytest.raises(BadTransition):
            provider.cancel_destruction(kek, 1)
        provider.destroy(kek, 1, delay=WEEK)
        with pytest.raises(KeyRetired):
            provider.unwrap(kek, wrapped, CONTEXT)
        clock.turn(WEEK + timedelta(hours=1))
        assert provider.versions(kek)[0].state is KeyState.destroyed
        with pytest.raises(BadTransition):
            provider.cancel_destruction(kek, 1)
        assert [gone.version for gone in provider.purge()] == [1]
        assert provider.purge() == ()
        with pytest.raises(KeyDestroyed):
            provider.unwrap(kek, wrapped, CONTEXT)
        assert provider.unwrap(kek, provider.wrap(kek, b"k" * 32, CONTEXT), CONTEXT) == b"k" * 32

    def test_a_retired_signer_still_verifies_a_destroyed_one_does_not(
        self, provider: KeyProvider, clock: Clock
    ) -> None:
        provider.create(NEW, algorithm=Algorithm.hybrid, purpose=Purpose.pack_signing)
        signature = provider.sign(NEW, b"m")
        provider.rotate(NEW)
        provider.retire(NEW, 1)
        assert provider.verify(NEW, b"m", signature) == b"m"
        provider.destroy(NEW, 1, delay=WEEK)
        assert provider.verify(NEW, b"m", signature) == b"m"
        clock.turn(WEEK + timedelta(hours=1))
        provider.purge()
        with pytest.raises(KeyDestroyed):
            provider.verify(NEW, b"m", signature)
        provider.verify(NEW, b"m", provider.sign(NEW, b"m"))

    def test_states_never_go_back_or_skip(self, provider: KeyProvider, kek: KeyId) -> None:
        for refused in (
            lambda: provider.retire(kek, 1),  # in use
            lambda: provider.destroy(kek, 1, delay=WEEK),  # not retired
            lambda: provider.destroy(kek, 1, delay=timedelta(days=-1)),
            lambda: provider.destroy(kek, 1, delay=timedelta(days=1000)),
            lambda: provider.cancel_destruction(kek, 1),
        ):
            with pytest.raises(BadTransition):
                refused()
        provider.rotate(kek)
        provider.retire(kek, 1)
        with pytest.raises(BadTransition):
            provider.retire(kek, 1)
        for refused in (
            lambda: provider.retire(kek, 9),
            lambda: provider.destroy(kek, 9, delay=WEEK),
            lambda: provider.rotate(key_id("absent")),
            lambda: provider.disable(key_id("absent")),
            lambda: provider.versions(key_id("absent")),
        ):
            with pytest.raises(KeyNotFound):
                refused()

    def test_a_disabled_key_can_be_ended(self, provider: KeyProvider, kek: KeyId) -> None:
        wrapped = provider.wrap(kek, b"k" * 32, CONTEXT)
        provider.disable(kek)
        provider.retire(kek, 1)
        provider.enable(kek)
        for use in (
            lambda: provider.unwrap(kek, wrapped, CONTEXT),
            lambda: provider.wrap(kek, b"k", CONTEXT),
        ):
            with pytest.raises(KeyRetired):
                use()
        assert provider.describe(kek).state is KeyState.retired
        assert provider.rotate(kek).version == 2

    def test_rotation_under_load_fails_nothing(self, provider: KeyProvider, kek: KeyId) -> None:
        """1,000 signatures and 1,000 unwraps while each key rotates three times."""
        signing = key_id("signing")
        provider.create(signing, algorithm=Algorithm.ed25519, purpose=Purpose.token_signing)
        wrapped = [provider.wrap(kek, b"k" * 32, CONTEXT)]
        signatures: list[Signature] = []

        begun = [Event() for _ in range(3)]  # so that every rotation falls into the load

        def work() -> None:
            for count in range(250):
                if count and count % 63 == 0:
                    assert begun[count // 63 - 1].wait(30)
                signatures.append(provider.sign(signing, b"m"))
                assert provider.unwrap(kek, wrapped[-1], CONTEXT) == b"k" * 32

        with ThreadPoolExecutor(4) as pool:
            busy = [pool.submit(work) for _ in range(4)]
            for turn, event in enumerate(begun, 1):
                while len(signatures) < 240 * turn and not any(b.done() for b in busy):
                    time.sleep(0.001)
                event.set()
                provider.rotate(signing)
                provider.rotate(kek)
                wrapped.append(provider.wrap(kek, b"k" * 32, CONTEXT))
            for future in busy:
                future.result()
        assert len(signatures) == 1000
        assert {s.version for s in signatures} >= {1, 2, 3}
        public = {n: provider.public_key(signing, n) for n in range(1, 5)}
        for signature in signatures:
            public[signature.version].verify(b"m", signature.value)
        for version in (1, 2, 3):
            provider.retire(kek, version)
        for old in wrapped[:3]:
            with pytest.raises(KeyRetired):
                provider.unwrap(kek, old, CONTEXT)
        assert provider.unwrap(kek, wrapped[3], CONTEXT) == b"k" * 32


class TestFileKeyProvider(KeyProviderContract):
    """The file provider."""

    @pytest.fixture
    def provider(self, tmp_path: Path, clock: Clock) -> KeyProvider:
        return FileKeyProvider(
            tmp_path / "keys",
            SecretBytes(secrets.token_bytes(32)),
            now=clock,
            monotonic=clock.monotonic,
        )


class TestPkcs11KeyProvider(KeyProviderContract):
    """A SoftHSM2 token."""

    @pytest.fixture
    def provider(self, tmp_path: Path, clock: Clock) -> KeyProvider:
        uri = parse(softhsm().rest(prefix()))
        token = open_token(uri)
        return Pkcs11KeyProvider(
            token, uri.prefix, now=clock, locks=tmp_path, monotonic=clock.monotonic
        )


class TestAwsKmsProvider(KeyProviderContract):
    """A moto server, completed by tests/support/kms_server.py."""

    @pytest.fixture
    def provider(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> KeyProvider:
        for name, value in credentials().items():
            monkeypatch.setenv(name, value)
        return AwsKmsProvider(
            client("eu-central-1", kms_endpoint()), prefix(), now=clock, monotonic=clock.monotonic
        )


class TestVaultKeyProvider(KeyProviderContract):
    """An OpenBao server."""

    @pytest.fixture
    def provider(self, tmp_path: Path, clock: Clock) -> KeyProvider:
        token = private_file(tmp_path / "token", bao().root)
        rest = bao().rest(prefix(), token)
        return open_vault(rest, now=clock, monotonic=clock.monotonic)
