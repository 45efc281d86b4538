"""What Vault refuses, and what happens to it, becomes a typed error: no plaintext, no fallback.

The peer is OpenBao. What tests break (seal, quota, kill) they break on a server of their own.
"""

from __future__ import annotations

import base64
import re
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from support.keys import CONTEXT, Bao, Clock, bao, end, free_port, prefix, private_file, start_bao
from tensorguard.errors import TensorGuardError
from tensorguard.keys import self_test
from tensorguard.keys.provider import (
    Algorithm,
    KeyChanged,
    KeyCustodyDenied,
    KeyCustodyDown,
    KeyCustodySealed,
    KeyCustodyThrottled,
    KeyCustodyTimeout,
    KeyDestroyed,
    KeyProviderUnusable,
    KeyRetired,
    KeyUnusable,
    Purpose,
    WrapContext,
    WrongContext,
    key_id,
)
from tensorguard.keys.registry import open_provider
from tensorguard.keys.vault import VaultKeyProvider, open_vault
from tensorguard.keys.vault_client import UnusableVaultUri
from tensorguard.settings import Settings

KEK, SIGNER, HYBRID = key_id("kek"), key_id("signer"), key_id("hybrid")
WEEK = timedelta(days=7)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    return private_file(tmp_path / "token", bao().root + "\n")


def opened(server: Bao, token: Path, clock: Clock, name: str | None = None) -> VaultKeyProvider:
    rest = server.rest(name or prefix(), token)
    return open_vault(rest, now=clock, monotonic=clock.monotonic, timeout=2)


@pytest.fixture
def provider(token: Path, clock: Clock) -> VaultKeyProvider:
    provider = opened(bao(), token, clock)
    provider.create(KEK, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)
    provider.create(SIGNER, algorithm=Algorithm.es256, purpose=Purpose.fleet_ca)
    provider.create(HYBRID, algorithm=Algorithm.hybrid, purpose=Purpose.pack_signing)
    return provider


@pytest.fixture
def own() -> Iterator[Bao]:
    server = start_bao()
    yield server
    end(server.process)


def uses(provider: VaultKeyProvider) -> list[object]:
    """Every use of a key; each makes at least one call to Vault."""
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    return [
        lambda: provider.unwrap(KEK, wrapped, CONTEXT),
        lambda: provider.wrap(KEK, b"k" * 32, CONTEXT),
        lambda: provider.data_key(KEK, CONTEXT),
        lambda: provider.sign(SIGNER, b"message"),
        lambda: provider.sign(HYBRID, b"message"),
        lambda: provider.rotate(KEK),
        provider.list_keys,
        lambda: self_test.run(provider),
    ]


def filled(server: Bao, tmp_path: Path, clock: Clock) -> VaultKeyProvider:
    provider = opened(server, private_file(tmp_path / "own", server.root), clock)
    provider.create(KEK, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)
    provider.create(SIGNER, algorithm=Algorithm.es256, purpose=Purpose.fleet_ca)
    provider.create(HYBRID, algorithm=Algorithm.hybrid, purpose=Purpose.pack_signing)
    return provider


def all_refuse(calls: list[object], error: type[TensorGuardError], clock: Clock) -> None:
    for call in calls:
        clock.turn(timedelta(seconds=2))  # records are read again
        with pytest.raises(error) as refused:
            call()
        assert "vault:v" not in str(refused.value)


# --- a Vault in trouble -----------------------------------------------------------------------


def test_sealed_and_unsealed_without_restart(own: Bao, tmp_path: Path, clock: Clock) -> None:
    provider = filled(own, tmp_path, clock)
    calls = uses(provider)
    own.call("POST", "sys/seal")
    all_refuse(calls, KeyCustodySealed, clock)


def test_server_that_was_killed(own: Bao, tmp_path: Path, clock: Clock) -> None:
    provider = filled(own, tmp_path, clock)
    calls = uses(provider)
    end(own.process)
    all_refuse(calls, KeyCustodyDown, clock)


def test_rate_limit(own: Bao, tmp_path: Path, clock: Clock) -> None:
    provider = filled(own, tmp_path, clock)
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    own.call("POST", "sys/quotas/rate-limit/slow", path="transit/", rate=0.1)
    calls = [lambda: provider.unwrap(KEK, wrapped, CONTEXT)] * 3
    with pytest.raises(KeyCustodyThrottled):
        [call() for call in calls]


def test_server_that_never_answers(token: Path, clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rest = f"http://127.0.0.1:{silent.getsockname()[1]}/transit?token-file={token}"
        with pytest.raises(KeyCustodyTimeout):
            open_vault(rest, now=clock, timeout=0.2).describe(KEK)


def test_nobody_listens(token: Path, clock: Clock) -> None:
    rest = f"http://127.0.0.1:{free_port()}/transit?token-file={token}"
    with pytest.raises(KeyCustodyDown):
        open_vault(rest, now=clock, timeout=0.5).describe(KEK)
    assert self_test.probe(Settings(key_provider=f"vault:{rest}")) is not None


# --- tokens -----------------------------------------------------------------------------------


def test_token_without_rights(provider: VaultKeyProvider, token: Path, clock: Clock) -> None:
    calls = uses(provider)
    poor = bao().call("POST", "auth/token/create", policies=["default"])["auth"]
    token.write_text(poor["client_token"])
    all_refuse(calls, KeyCustodyDenied, clock)
    token.write_text(bao().root)  # an agent writes a good one: no restart
    provider.sign(SIGNER, b"message")


def test_token_that_was_revoked_is_read_again(
    provider: VaultKeyProvider, token: Path, clock: Clock
) -> None:
    """The file changed a moment ago, before the next look at it: the refusal leads to a look."""
    made = bao().call("POST", "auth/token/create", policies=["root"])["auth"]["client_token"]
    token.write_text(made)
    clock.turn(timedelta(seconds=2))
    provider.sign(SIGNER, b"message")
    bao().call("POST", "auth/token/revoke", token=made)
    token.write_text(bao().root)
    provider.sign(SIGNER, b"message")


def test_token_is_renewed_at_half_its_life(
    provider: VaultKeyProvider, token: Path, clock: Clock
) -> None:
    bao().call(
        "PUT",
        "sys/policies/acl/everything",
        policy='path "*" { capabilities = ["create", "read", "update", "delete", "list"] }',
    )
    made = bao().call("POST", "auth/token/create", policies=["everything"], ttl="100s")["auth"]
    token.write_text(made["client_token"])
    clock.turn(timedelta(seconds=2))
    provider.sign(SIGNER, b"message")

    def renewed_at() -> object:
        found = bao().call("POST", "auth/token/lookup", token=made["client_token"])["data"]
        return found.get("last_renewal")

    first = renewed_at()
    provider.sign(SIGNER, b"message")
    assert renewed_at() == first
    clock.turn(timedelta(seconds=60))
    provider.sign(SIGNER, b"message")
    assert renewed_at() != first


def test_the_documented_policy_is_enough_and_no_more(token: Path, clock: Clock) -> None:
    document = Path(__file__).parents[2] / "docs" / "key-providers.md"
    (policy,) = re.findall(r"```hcl\n(.*?)```", document.read_text(), re.DOTALL)
    name = prefix()
    bao().call("PUT", f"sys/policies/acl/{name}", policy=policy.replace("PREFIX", name))
    made = bao().call("POST", "auth/token/create", policies=[name])["auth"]
    token.write_text(made["client_token"])
    provider = opened(bao(), token, clock, name)
    self_test.run(provider)
    for algorithm in Algorithm:
        key = key_id(algorithm.name.replace("_", "-"))
        provider.create(key, algorithm=algorithm, purpose=Purpose.data_at_rest)
        provider.rotate(key)
        provider.retire(key, 1)
        provider.destroy(key, 1, delay=WEEK)
        if algorithm.signs:
            provider.verify(key, b"m", provider.sign(key, b"m"))
        else:
            made_key = provider.data_key(key, CONTEXT)
            assert provider.unwrap(key, made_key.wrapped, CONTEXT) == made_key.plaintext
    clock.turn(WEEK)
    assert len(provider.purge()) == len(Algorithm)
    with pytest.raises(KeyCustodyDenied):
        opened(bao(), token, clock).create(
            KEK, algorithm=Algorithm.ed25519, purpose=Purpose.token_signing
        )


@pytest.mark.parametrize("content", ["", "two tokens", "line\nline", "\x00"])
def test_token_file_that_holds_no_token(
    provider: VaultKeyProvider, token: Path, clock: Clock, content: str
) -> None:
    token.write_text(content)
    clock.turn(timedelta(seconds=2))
    with pytest.raises(KeyProviderUnusable):
        provider.sign(SIGNER, b"message")


def test_token_file_that_others_can_read(token: Path, clock: Clock) -> None:
    token.chmod(0o644)
    with pytest.raises(KeyProviderUnusable):
        opened(bao(), token, clock).describe(KEK)


# --- Vault enforces what the record says ------------------------------------------------------


def test_retired_versions_are_refused_by_vault_itself(
    provider: VaultKeyProvider, clock: Clock
) -> None:
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    provider.rotate(KEK)
    provider.retire(KEK, 1)
    body = {
        "associated_data": base64.b64encode(CONTEXT.associated_data(KEK, 1)).decode(),
        "ciphertext": "vault:v1:" + base64.b64encode(wrapped[4:]).decode(),
    }
    name = f"{provider._prefix}.{KEK}"
    with pytest.raises(httpx.HTTPStatusError) as refused:
        bao().call("POST", f"transit/decrypt/{name}", **body)
    assert "disallowed by policy" in refused.value.response.text
    found = bao().call("GET", f"transit/keys/{name}")["data"]
    assert (found["min_decryption_version"], found["min_encryption_version"]) == (2, 2)
    provider.destroy(KEK, 1, delay=WEEK)
    clock.turn(WEEK)
    provider.purge()
    assert bao().call("GET", f"transit/keys/{name}")["data"]["min_available_version"] == 2


def test_destroying_a_hybrid_version_destroys_the_key_of_its_seed(
    provider: VaultKeyProvider, clock: Clock
) -> None:
    provider.rotate(HYBRID)
    provider.retire(HYBRID, 1)
    provider.destroy(HYBRID, 1, delay=WEEK)
    clock.turn(WEEK)
    provider.purge()
    with pytest.raises(httpx.HTTPStatusError):
        bao().call("GET", f"transit/keys/{provider._prefix}.{HYBRID}.seal.1")
    with pytest.raises(KeyDestroyed):
        provider.public_key(HYBRID, 1)
    provider.verify(HYBRID, b"message", provider.sign(HYBRID, b"message"))


def test_a_version_in_the_middle_is_refused_before_its_elders(
    provider: VaultKeyProvider,
) -> None:
    """Vault's floors go in order; the record refuses what they cannot express."""
    blobs = []
    for _ in range(3):
        blobs.append(provider.wrap(KEK, b"k" * 32, CONTEXT))
        provider.rotate(KEK)
    provider.retire(KEK, 2)
    assert provider.unwrap(KEK, blobs[0], CONTEXT) == b"k" * 32
    with pytest.raises(KeyRetired):
        provider.unwrap(KEK, blobs[1], CONTEXT)
    assert provider.unwrap(KEK, blobs[2], CONTEXT) == b"k" * 32


def test_a_process_that_missed_a_rotation_and_a_retirement_goes_on(
    provider: VaultKeyProvider, token: Path
) -> None:
    frozen = Clock()
    frozen.monotonic = lambda: 1000.0
    stale = opened(bao(), token, frozen, provider._prefix)
    wrapped = stale.wrap(KEK, b"k" * 32, CONTEXT)
    for key in (SIGNER, KEK):
        stale.describe(key)
        provider.rotate(key)
        provider.retire(key, 1)
    assert stale.sign(SIGNER, b"message").version == 2
    assert stale.data_key(KEK, CONTEXT).wrapped[:4] == b"\0\0\0\2"
    with pytest.raises(KeyRetired):
        stale.unwrap(KEK, wrapped, CONTEXT)


def test_two_processes_change_one_key(
    provider: VaultKeyProvider, token: Path, clock: Clock
) -> None:
    other = opened(bao(), token, clock, provider._prefix)
    with provider._existing(KEK) as before:
        other.disable(KEK)
        with pytest.raises(KeyChanged):
            provider._save(before, before.retired(1) if before.disabled else before, None)
    assert opened(bao(), token, clock, provider._prefix).describe(KEK).disabled


def test_rotations_at_the_same_time_make_whole_versions(
    provider: VaultKeyProvider, token: Path, clock: Clock
) -> None:
    processes = [opened(bao(), token, clock, provider._prefix) for _ in range(4)]

    def work(process: VaultKeyProvider) -> int:
        try:
            return max(process.rotate(HYBRID).version, process.rotate(KEK).version)
        except KeyChanged:
            return 0

    with ThreadPoolExecutor(4) as pool:
        assert any(pool.map(work, processes * 4))
    for key in (KEK, HYBRID):
        assert provider._read(key, fresh=True).active == provider._read(key).versions[-1]
        provider.rotate(key)
    provider.verify(HYBRID, b"message", provider.sign(HYBRID, b"message"))
    assert provider.unwrap(KEK, provider.wrap(KEK, b"k" * 32, CONTEXT), CONTEXT) == b"k" * 32


def test_rotations_that_were_killed_half_way_are_taken_up(provider: VaultKeyProvider) -> None:
    """Transit has new versions, the record does not: the next rotation uses the newest."""
    name = f"{provider._prefix}.{KEK}"
    for _ in range(2):
        bao().call("POST", f"transit/keys/{name}/rotate")
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    assert wrapped[:4] == b"\0\0\0\1"
    assert provider.rotate(KEK).version == 3
    assert provider.unwrap(KEK, wrapped, CONTEXT) == b"k" * 32


# --- what others put into Vault ---------------------------------------------------------------


def test_transit_key_that_can_be_exported(provider: VaultKeyProvider) -> None:
    planted = key_id("planted")
    path = f"transit/keys/{provider._prefix}.{planted}"
    bao().call("POST", path, type="ed25519", exportable=True)
    with pytest.raises(KeyUnusable):
        provider.create(planted, algorithm=Algorithm.ed25519, purpose=Purpose.token_signing)


def test_transit_key_of_another_type(provider: VaultKeyProvider) -> None:
    planted = key_id("planted")
    path = f"transit/keys/{provider._prefix}.{planted}"
    bao().call("POST", path, type="chacha20-poly1305")
    with pytest.raises(KeyChanged):
        provider.create(planted, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)


@pytest.mark.parametrize("record", ["", "{}", '{"a":1}', "x" * 100])
def test_damaged_record(provider: VaultKeyProvider, clock: Clock, record: str) -> None:
    data = {"record": record, "sealed": {}}
    bao().call("POST", f"secret/data/{provider._prefix}/{KEK}", data=data)
    clock.turn(timedelta(seconds=2))
    with pytest.raises(KeyUnusable):
        provider.wrap(KEK, b"k" * 32, CONTEXT)


def test_record_of_another_key(provider: VaultKeyProvider, clock: Clock) -> None:
    entry = bao().call("GET", f"secret/data/{provider._prefix}/{SIGNER}")["data"]["data"]
    bao().call("POST", f"secret/data/{provider._prefix}/{KEK}", data=entry)
    clock.turn(timedelta(seconds=2))
    with pytest.raises(KeyUnusable):
        provider.describe(KEK)


def test_sealed_half_of_another_hybrid_key(provider: VaultKeyProvider, clock: Clock) -> None:
    other = key_id("other-hybrid")
    provider.create(other, algorithm=Algorithm.hybrid, purpose=Purpose.pack_signing)
    path = f"secret/data/{provider._prefix}"
    mine, theirs = (bao().call("GET", f"{path}/{k}")["data"]["data"] for k in (HYBRID, other))
    bao().call("POST", f"{path}/{HYBRID}", data={**mine, "sealed": theirs["sealed"]})
    clock.turn(timedelta(seconds=2))
    with pytest.raises(KeyUnusable):
        provider.sign(HYBRID, b"message")


def test_removed_transit_key(provider: VaultKeyProvider) -> None:
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    path = f"transit/keys/{provider._prefix}.{KEK}"
    bao().call("POST", f"{path}/config", deletion_allowed=True)
    bao().call("DELETE", path)
    with pytest.raises(KeyUnusable):
        provider.unwrap(KEK, wrapped, CONTEXT)


def test_wrong_context_says_nothing_else(provider: VaultKeyProvider) -> None:
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    for blob, context in (
        (wrapped, WrapContext("database", "evil")),
        (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), CONTEXT),
        (wrapped[:20], CONTEXT),
    ):
        with pytest.raises(WrongContext) as refused:
            provider.unwrap(KEK, blob, context)
        assert "tenant" not in str(refused.value)


def test_large_messages_are_signed(provider: VaultKeyProvider) -> None:
    message = secrets.token_bytes(200_000)
    for key in (SIGNER, HYBRID):
        for signed in (b"", message):
            provider.verify(key, signed, provider.sign(key, signed))


# --- URIs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "http://vault.example/transit?token-file=/t",
        "https://user:secret@vault.example/transit?token-file=/t",
        "https://vault.example/transit",
        "https://vault.example/transit?token=s.secret",
        "https://vault.example/transit?token-file=t",
        "https://vault.example/transit?token-file=/t&token-file=/u",
        "https://vault.example/../sys?token-file=/t",
        "https://vault.example/transit?kv=&token-file=/t",
        "https://vault.example/transit?prefix=A&token-file=/t",
        "https://vault.example/transit?ca=/absent&token-file=/t",
        "https:///transit?token-file=/t",
    ],
)
def test_uri_that_says_too_little_or_too_much(rest: str) -> None:
    with pytest.raises(UnusableVaultUri) as refused:
        open_vault(rest, now=Clock())
    assert "secret" not in str(refused.value)


def test_the_uri_opens_the_same_keys(provider: VaultKeyProvider, token: Path) -> None:
    uri = f"vault:{bao().rest(provider._prefix, token)}"
    found = open_provider(Settings(key_provider=uri)).list_keys()
    assert {info.key_id for info in found} == {KEK, SIGNER, HYBRID}
