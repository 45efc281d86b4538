"""An audit trail that cannot be written stops every use of a key: no signature, token or value leaves."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from support.csrs import csr, p256
from support.devices import Fleet, ask, assertion
from support.platform import Platform
from tensorguard.keys.provider import KeyId, key_id
from tensorguard.platform.keys.rings import tenant_key_id
from tensorguard.platform.principal import Role

SQLITE = (
    """CREATE TRIGGER no_audit BEFORE INSERT ON audit_event
    BEGIN SELECT RAISE(ABORT, 'the disk is full'); END""",
)
POSTGRESQL = (
    """CREATE FUNCTION no_audit() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the disk is full'; END $$""",
    "CREATE TRIGGER no_audit BEFORE INSERT ON audit_event EXECUTE FUNCTION no_audit()",
)
KEYS = "/api/v1/keys"


@contextmanager
def no_trail(platform: Platform) -> Iterator[None]:
    """Make every append to the trail fail in the database."""
    postgresql = platform.state.engine.dialect.name == "postgresql"
    with platform.state.engine.begin() as connection:
        for statement in POSTGRESQL if postgresql else SQLITE:
            connection.execute(text(statement))
    try:
        yield
    finally:
        with platform.state.engine.begin() as connection:
            if postgresql:
                connection.execute(text("DROP TRIGGER no_audit ON audit_event"))
                connection.execute(text("DROP FUNCTION no_audit"))
            else:
                connection.execute(text("DROP TRIGGER no_audit"))


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@pytest.mark.invariant("TG-I22")
def test_without_the_trail_no_use_of_a_key_leaves(platform: Platform) -> None:
    security = platform.caller(Role.security)
    client = platform.client
    for name, purpose in (("release", "pack-signing"), ("rest", "data-at-rest")):
        body = {"name": name, "purpose": purpose}
        assert client.post(KEYS, json=body, headers=security).status_code == 201
    wrapped = client.post(f"{KEYS}/rest/data-keys", headers=security).json()["wrapped"]
    fleet = Fleet(platform)
    device, enrolment = fleet.enrol(), fleet.enrolment()
    uses: dict[str, Callable[[], object]] = {
        "sign": lambda: client.post(
            f"{KEYS}/release/sign", json={"message": b64(b"m")}, headers=security
        ),
        "data-key": lambda: client.post(f"{KEYS}/rest/data-keys", headers=security),
        "unwrap": lambda: client.post(
            f"{KEYS}/rest/unwrap", json={"wrapped": wrapped}, headers=security
        ),
        "token": lambda: ask(platform, assertion(platform, device)),
        "certificate": lambda: fleet.redeem(enrolment, csr(p256()), "arm-2"),
        "head": lambda: client.post("/api/v1/audit/heads", headers=security),
        "secret": lambda: client.put(
            "/api/v1/secrets/webhook", json={"value": "hunter2"}, headers=security
        ),
    }
    with no_trail(platform):
        for name, use in uses.items():
            answer = use()
            assert answer.status_code >= 500, name
            assert answer.headers["content-type"] == "application/problem+json", name
            for member in ("signature", "plaintext", "access_token", "BEGIN", "envelope"):
                assert member not in answer.text, name
    for name, use in uses.items():
        assert use().status_code in {200, 201}, name


@pytest.mark.parametrize(
    "change", ["release/rotate", "release/stage", "release/disable", "release/versions/1/retire"]
)
@pytest.mark.invariant("TG-I22")
def test_without_the_trail_no_key_changes(platform: Platform, change: str) -> None:
    security = platform.caller(Role.security)
    body = {"name": "release", "purpose": "pack-signing", "algorithm": "Ed25519"}
    platform.client.post(KEYS, json=body, headers=security)
    platform.client.post(f"{KEYS}/release/rotate", headers=security)
    key = tenant_key_id(platform.tenant(), "release")
    before = platform.state.keys.versions(key)
    with no_trail(platform):
        assert platform.client.post(f"{KEYS}/{change}", headers=security).status_code >= 500
        made = platform.client.post(KEYS, json={**body, "name": "more"}, headers=security)
        assert made.status_code >= 500
    assert platform.state.keys.versions(key) == before
    assert tenant_key_id(platform.tenant(), "more") not in names(platform)


def names(platform: Platform) -> set[KeyId]:
    return {key_id(info.key_id) for info in platform.state.keys.list_keys()}
