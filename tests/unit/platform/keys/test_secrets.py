"""Sealed columns open in their own place only; secrets go in and never come out over HTTP."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretBytes
from sqlalchemy import text

from support.devices import events
from support.platform import Platform
from tensorguard.errors import TensorGuardError
from tensorguard.keys.cache import DataKeyCache
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import KeyRetired, WrongContext
from tensorguard.platform.keys.envelope import Envelope, Place, SealBroken
from tensorguard.platform.keys.rings import DATA_AT_REST
from tensorguard.platform.principal import Role
from tensorguard.platform.tenant_secrets import service

PLACE = Place("tenant-1", "tenant_secret", "sealed", "webhook")
VALUE = SecretBytes(b"hunter2")


@pytest.fixture
def provider(tmp_path: Path) -> FileKeyProvider:
    return FileKeyProvider(
        tmp_path / "keys", SecretBytes(secrets.token_bytes(32)), now=lambda: datetime.now(UTC)
    )


@pytest.fixture
def envelope(provider: FileKeyProvider) -> Envelope:
    return Envelope(provider)


def test_a_value_opens_where_it_was_sealed(envelope: Envelope) -> None:
    one, two = (envelope.seal(VALUE, PLACE) for _ in range(2))
    assert one.value != two.value
    assert envelope.open(one.value, PLACE) == envelope.open(two.value, PLACE) == VALUE
    assert b"hunter2" not in one.value


@pytest.mark.parametrize("field", ["tenant_id", "table", "column", "row"])
@pytest.mark.invariant("TG-I21")
def test_a_value_that_was_moved_does_not_open(envelope: Envelope, field: str) -> None:
    sealed = envelope.seal(VALUE, PLACE).value
    with pytest.raises((SealBroken, WrongContext)):
        envelope.open(sealed, replace(PLACE, **{field: "other"}))


def test_every_changed_byte_is_refused(envelope: Envelope) -> None:
    sealed = envelope.seal(VALUE, PLACE).value
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(TensorGuardError):
            envelope.open(bytes(changed), PLACE)
    for length in (0, 1, 3, len(sealed) // 2, len(sealed) - 1):
        with pytest.raises(TensorGuardError):
            envelope.open(sealed[:length], PLACE)


def test_a_rewrapped_value_outlives_the_version_that_wrapped_it(provider: FileKeyProvider) -> None:
    envelope = Envelope(provider, cache=DataKeyCache(provider, max_uses=1))
    first = envelope.seal(VALUE, PLACE)
    provider.rotate(DATA_AT_REST)
    assert envelope.open(first.value, PLACE) == VALUE
    second = envelope.rewrap(first.value, PLACE)
    assert (first.key_version, second.key_version) == (1, 2)
    provider.retire(DATA_AT_REST, 1)
    with pytest.raises(KeyRetired):
        envelope.open(first.value, PLACE)
    assert envelope.open(second.value, PLACE) == VALUE


def test_secrets_are_stored_replaced_listed_and_deleted(platform: Platform) -> None:
    headers, path = platform.caller(Role.security), "/api/v1/secrets/webhook.token"
    client = platform.client
    first = client.put(path, json={"value": "hunter2"}, headers=headers)
    assert first.status_code == 201
    assert first.json().keys() == {"name", "key_version", "created", "updated", "updated_by"}
    assert client.put(path, json={"value": "hunter3"}, headers=headers).status_code == 200
    shown = client.get(path, headers=headers)
    listed = client.get("/api/v1/secrets", headers=headers)
    assert shown.json() == listed.json()["items"][0]
    assert "hunter" not in first.text + shown.text + listed.text
    tenant_id = platform.tenant()
    with platform.session() as session:
        stored = session.execute(text("SELECT sealed FROM tenant_secret")).scalar_one()
        assert b"hunter" not in bytes(stored)
        value = service.use(
            session,
            "webhook.token",
            tenant_id=tenant_id,
            actor="platform:webhooks",
            envelope=platform.state.envelope,
            now=platform.clock(),
        )
    assert value.get_secret_value() == b"hunter3"
    rival = platform.caller(Role.security, "rival")
    assert client.get(path, headers=rival).status_code == 404
    assert client.delete(path, headers=rival).status_code == 404
    assert client.delete(path, headers=headers).status_code == 204
    assert client.get(path, headers=headers).status_code == 404
    recorded = [action for action, _ in events(platform) if action.startswith("secret.")]
    assert recorded == ["secret.stored", "secret.stored", "secret.used", "secret.deleted"]


@pytest.mark.parametrize(
    ("name", "value"), [("UP", "v"), (".x", "v"), ("x", ""), ("x", "v" * 8193), ("x" * 65, "v")]
)
def test_secrets_that_cannot_be_stored(sqlite_platform: Platform, name: str, value: str) -> None:
    headers = sqlite_platform.caller(Role.security)
    refused = sqlite_platform.client.put(
        f"/api/v1/secrets/{name}", json={"value": value}, headers=headers
    )
    assert refused.status_code in {400, 422}
    assert "vvvv" not in refused.text


def test_a_row_that_was_copied_to_another_tenant_does_not_open(sqlite_platform: Platform) -> None:
    acme, rival = sqlite_platform.tenant("acme"), sqlite_platform.tenant("rival")
    with sqlite_platform.session() as session:
        arguments = {
            "actor": "platform:test",
            "envelope": sqlite_platform.state.envelope,
            "now": sqlite_platform.clock(),
        }
        service.put(session, "s", VALUE, tenant_id=acme, **arguments)
        service.put(session, "s", SecretBytes(b"other"), tenant_id=rival, **arguments)
        session.flush()
        session.execute(
            text(
                "UPDATE tenant_secret SET sealed = (SELECT sealed FROM tenant_secret "
                "WHERE tenant_id = :acme) WHERE tenant_id = :rival"
            ),
            {"acme": acme, "rival": rival},
        )
        session.expire_all()
        with pytest.raises(WrongContext):
            service.use(session, "s", tenant_id=rival, **arguments)
