"""What AWS KMS refuses, and what happens to it, becomes a typed error: no plaintext, no fallback."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from botocore.stub import Stubber

from support.keys import CONTEXT, Clock, credentials, end, free_port, prefix, start_kms
from tensorguard.errors import TensorGuardError
from tensorguard.keys import self_test
from tensorguard.keys.aws_kms import AwsKmsProvider, UnusableKmsUri, client, open_kms
from tensorguard.keys.provider import (
    Algorithm,
    KeyChanged,
    KeyCustodyDenied,
    KeyCustodyDown,
    KeyCustodyThrottled,
    KeyCustodyTimeout,
    KeyDisabled,
    KeyExists,
    KeyProviderUnusable,
    KeyRetired,
    KeyState,
    KeyUnusable,
    Purpose,
    WrapContext,
    WrongContext,
    WrongKeyUse,
    key_id,
)
from tensorguard.keys.registry import open_provider
from tensorguard.settings import Settings

KEK, SIGNER, HYBRID = key_id("kek"), key_id("signer"), key_id("hybrid")
WEEK = timedelta(days=7)


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    process, url = start_kms()
    yield url
    end(process)


@pytest.fixture
def kms(endpoint: str) -> Any:
    return client("eu-central-1", endpoint)


@pytest.fixture
def provider(kms: Any) -> AwsKmsProvider:
    clock = Clock()
    provider = AwsKmsProvider(kms, prefix(), now=clock, monotonic=clock.monotonic)
    provider.create(KEK, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)
    provider.create(SIGNER, algorithm=Algorithm.es256, purpose=Purpose.fleet_ca)
    return provider


def second(provider: AwsKmsProvider) -> AwsKmsProvider:
    """Another process with the same keys."""
    clock = Clock()
    return AwsKmsProvider(provider._kms, provider._prefix, now=clock, monotonic=clock.monotonic)


REFUSALS = [
    ("DisabledException", KeyDisabled),
    ("KMSInvalidStateException", KeyRetired),
    ("AccessDeniedException", KeyCustodyDenied),
    ("UnrecognizedClientException", KeyCustodyDenied),
    ("ExpiredTokenException", KeyCustodyDenied),
    ("ThrottlingException", KeyCustodyThrottled),
    ("LimitExceededException", KeyCustodyThrottled),
    ("DependencyTimeoutException", KeyCustodyTimeout),
    ("KMSInternalException", KeyCustodyDown),
    ("KeyUnavailableException", KeyCustodyDown),
    ("NotFoundException", KeyUnusable),
    ("NeverHeardOfException", KeyCustodyDown),
]


@pytest.mark.parametrize(("code", "error"), REFUSALS)
def test_every_refusal_of_kms_is_typed(
    provider: AwsKmsProvider, code: str, error: type[TensorGuardError]
) -> None:
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    for operation, use in (
        ("decrypt", lambda: provider.unwrap(KEK, wrapped, CONTEXT)),
        ("encrypt", lambda: provider.wrap(KEK, b"k" * 32, CONTEXT)),
        ("generate_data_key", lambda: provider.data_key(KEK, CONTEXT)),
        ("sign", lambda: provider.sign(SIGNER, b"message")),
        ("list_aliases", lambda: provider._read(KEK, fresh=True)),
    ):
        with Stubber(provider._kms) as stub:
            stub.add_client_error(operation, code, "the text of AWS, with arn:aws:kms:secret")
            if error in {KeyDisabled, KeyRetired} and operation != "list_aliases":
                stub.add_client_error("list_aliases", code)  # the record is read again
            with pytest.raises(error) as refused:
                use()
        assert "arn:" not in str(refused.value)
    assert provider.unwrap(KEK, wrapped, CONTEXT) == b"k" * 32


@pytest.mark.parametrize("code", ["InvalidCiphertextException", "IncorrectKeyException"])
def test_a_wrong_context_or_ciphertext_is_told_apart(provider: AwsKmsProvider, code: str) -> None:
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    with Stubber(provider._kms) as stub:
        stub.add_client_error("decrypt", code)
        with pytest.raises(WrongContext):
            provider.unwrap(KEK, wrapped, CONTEXT)


def test_the_context_is_what_kms_is_asked_with(provider: AwsKmsProvider) -> None:
    """Real KMS logs and authenticates it: key, version, purpose and tenant, nothing else."""
    main = provider._keys(KEK, 1).main
    bound = {"key_id": "kek", "purpose": "database", "tenant": "acme", "version": "1"}
    with Stubber(provider._kms) as stub:
        asked = {"KeyId": main, "Plaintext": b"k" * 32, "EncryptionContext": bound}
        stub.add_response("encrypt", {"CiphertextBlob": b"sealed"}, asked)
        assert provider.wrap(KEK, b"k" * 32, CONTEXT) == b"\0\0\0\1sealed"
        stub.add_response(
            "decrypt",
            {"Plaintext": b"k" * 32},
            {"KeyId": main, "CiphertextBlob": b"sealed", "EncryptionContext": bound},
        )
        assert provider.unwrap(KEK, b"\0\0\0\1sealed", CONTEXT) == b"k" * 32


def test_blob_of_another_kms_key_of_the_account(provider: AwsKmsProvider) -> None:
    other = key_id("other")
    provider.create(other, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)
    wrapped = provider.wrap(other, b"k" * 32, CONTEXT)
    with pytest.raises(WrongContext):
        provider.unwrap(KEK, wrapped, CONTEXT)
    with pytest.raises(WrongContext):
        provider.unwrap(other, wrapped, WrapContext("database", "evil"))


# --- KMS enforces what the record says --------------------------------------------------------


def test_retired_versions_are_disabled_in_kms_itself(provider: AwsKmsProvider) -> None:
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    old = provider._keys(KEK, 1).main
    provider.rotate(KEK)
    provider.retire(KEK, 1)
    assert provider._kms.describe_key(KeyId=old)["KeyMetadata"]["KeyState"] == "Disabled"
    stale = second(provider)
    with pytest.raises(KeyRetired):
        stale.unwrap(KEK, wrapped, CONTEXT)
    provider.destroy(KEK, 1, delay=WEEK)
    assert provider._kms.describe_key(KeyId=old)["KeyMetadata"]["KeyState"] == "PendingDeletion"
    with pytest.raises(KeyRetired):
        second(provider).unwrap(KEK, wrapped, CONTEXT)


def test_a_process_that_missed_a_rotation_and_a_retirement_goes_on(
    provider: AwsKmsProvider,
) -> None:
    stale = second(provider)
    old = stale.sign(SIGNER, b"message")
    wrapped = stale.wrap(KEK, b"k" * 32, CONTEXT)
    for key in (SIGNER, KEK):
        provider.rotate(key)
        provider.retire(key, 1)
    assert stale.sign(SIGNER, b"message").version == 2
    assert stale.wrap(KEK, b"k" * 32, CONTEXT)[:4] == b"\0\0\0\2"
    with pytest.raises(KeyRetired):
        stale.unwrap(KEK, wrapped, CONTEXT)
    stale.verify(SIGNER, b"message", old)


def test_a_key_that_was_disabled_in_the_console(provider: AwsKmsProvider) -> None:
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    main = provider._keys(KEK, 1).main
    provider._kms.disable_key(KeyId=main)
    with pytest.raises(KeyDisabled):
        provider.unwrap(KEK, wrapped, CONTEXT)
    assert provider.describe(KEK).disabled
    provider._kms.enable_key(KeyId=main)
    assert second(provider).unwrap(KEK, wrapped, CONTEXT) == b"k" * 32


def test_wrapping_keys_rotate_inside_kms_yearly_and_on_demand(provider: AwsKmsProvider) -> None:
    main = provider._keys(KEK, 1).main
    assert provider._kms.get_key_rotation_status(KeyId=main)["KeyRotationEnabled"]
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    provider.refresh_material(KEK)
    assert len(provider._kms.list_key_rotations(KeyId=main)["Rotations"]) == 1
    assert provider.unwrap(KEK, wrapped, CONTEXT) == b"k" * 32
    assert provider.describe(KEK).version == 1


# --- others in the same account ---------------------------------------------------------------


def test_two_processes_make_the_same_key_or_version(provider: AwsKmsProvider) -> None:
    other = second(provider)
    stolen = key_id("stolen")
    made = provider._make(stolen, Algorithm.es256, 1)
    other.create(stolen, algorithm=Algorithm.es256, purpose=Purpose.fleet_ca)
    record = other._read(stolen)
    with pytest.raises(KeyExists):
        provider._save(None, record, made)
    before = provider._read(KEK)
    made_too = provider._make(KEK, Algorithm.aes256_gcm, 2)
    other.rotate(KEK)
    with pytest.raises(KeyChanged):
        provider._save(before, before.rotated(b"", provider._now()), made_too)
    for orphan in (made.material.main, made_too.material.main):
        state = provider._kms.describe_key(KeyId=orphan)["KeyMetadata"]["KeyState"]
        assert state == "PendingDeletion"
    assert second(provider).describe(KEK).version == 2


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("key", "signer"),
        ("version", "2"),
        ("state", "super"),
        ("algorithm", "none"),
        ("purpose", ""),
    ],
)
def test_edited_tags(provider: AwsKmsProvider, tag: str, value: str) -> None:
    provider._tag(provider._keys(KEK, 1).main, {tag: value})
    with pytest.raises(KeyUnusable):
        second(provider).describe(KEK)


def test_alias_that_was_moved_to_another_key(provider: AwsKmsProvider) -> None:
    provider._kms.update_alias(
        AliasName=provider._alias(KEK, 1), TargetKeyId=provider._keys(SIGNER, 1).main
    )
    with pytest.raises(KeyUnusable):
        second(provider).wrap(KEK, b"k" * 32, CONTEXT)


# --- sizes ------------------------------------------------------------------------------------


def test_messages_over_the_limit_of_kms(provider: AwsKmsProvider) -> None:
    """4,096 bytes are what KMS signs: P-256 and ML-DSA take a digest, pure Ed25519 cannot."""
    long = secrets.token_bytes(100_000)
    provider.create(HYBRID, algorithm=Algorithm.hybrid, purpose=Purpose.pack_signing)
    for key in (SIGNER, HYBRID):
        for message in (b"", b"m", long):
            provider.verify(key, message, provider.sign(key, message))
    token = key_id("token")
    provider.create(token, algorithm=Algorithm.ed25519, purpose=Purpose.token_signing)
    provider.verify(token, long[:4096], provider.sign(token, long[:4096]))
    for message in (b"", long[:4097]):
        with pytest.raises(WrongKeyUse):
            provider.sign(token, message)


# --- no KMS -----------------------------------------------------------------------------------


def test_server_that_was_killed() -> None:
    process, url = start_kms()
    provider = AwsKmsProvider(
        client("eu-central-1", url, timeout=1, attempts=2), prefix(), now=Clock()
    )
    self_test.run(provider)
    end(process)
    for use in (
        lambda: self_test.run(provider),
        lambda: provider.sign(self_test.SIGNING_KEY, b"message"),
        lambda: provider.data_key(self_test.WRAPPING_KEY, CONTEXT),
    ):
        with pytest.raises(KeyCustodyDown):
            use()


def test_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        kms = client("eu-central-1", url, timeout=0.3, attempts=1)
        with pytest.raises(KeyCustodyTimeout):
            AwsKmsProvider(kms, prefix(), now=Clock()).describe(KEK)


def test_nobody_listens() -> None:
    kms = client("eu-central-1", f"http://127.0.0.1:{free_port()}", timeout=1, attempts=1)
    with pytest.raises(KeyCustodyDown):
        AwsKmsProvider(kms, prefix(), now=Clock()).describe(KEK)


def test_no_credentials(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    settings = Settings(key_provider=f"awskms:eu-central-1/x?endpoint={endpoint}")
    with pytest.raises(KeyCustodyDenied):
        open_provider(settings).list_keys()
    assert self_test.probe(settings) is not None


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "nowhere",
        "eu-central-1/UPPER",
        "eu-central-1/a/b",
        "eu-central-1/x?endpoint=http://kms.example",
        "eu-central-1/x?secret=1",
    ],
)
def test_uri_that_says_too_little_or_too_much(rest: str) -> None:
    with pytest.raises(UnusableKmsUri):
        open_kms(rest, now=Clock())


def test_profile_that_does_not_exist() -> None:
    with pytest.raises(KeyProviderUnusable):
        open_kms("eu-central-1/x?profile=absent", now=Clock())


def test_the_uri_opens_the_same_keys(provider: AwsKmsProvider, endpoint: str) -> None:
    uri = f"awskms:eu-central-1/{provider._prefix}?endpoint={endpoint}"
    opened = open_provider(Settings(key_provider=uri))
    assert {info.key_id for info in opened.list_keys()} == {KEK, SIGNER}
    assert opened.versions(KEK)[0].state is KeyState.active


def test_threads_use_one_client(provider: AwsKmsProvider) -> None:
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)

    def work(_: int) -> None:
        for _ in range(20):
            assert provider.unwrap(KEK, wrapped, CONTEXT) == b"k" * 32

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
