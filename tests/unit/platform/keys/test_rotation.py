"""The policy task publishes, rotates, rewraps, retires and destroys in time, and notices outsiders."""

from __future__ import annotations

import time
from datetime import UTC

import pytest
from cryptography import x509
from pydantic import SecretBytes

from support.devices import Fleet, access_token, bearer, events
from support.platform import Platform
from tensorguard.identity import chain
from tensorguard.keys.provider import KeyState, key_id
from tensorguard.platform.audit.service import open_row, sign_head, trust_of
from tensorguard.platform.keys.periodic import keep_policies
from tensorguard.platform.principal import Role
from tensorguard.platform.tenant_secrets import service as secrets

TOKENS, REST = key_id("token-signing"), key_id("data-at-rest")


def states(platform: Platform, key: str) -> dict[int, KeyState]:
    return {info.version: info.state for info in platform.state.keys.versions(key_id(key))}


def use(platform: Platform, tenant_id: str, name: str = "webhook") -> bytes:
    with platform.session() as session:
        value = secrets.use(
            session,
            name,
            tenant_id=tenant_id,
            actor="platform:test",
            envelope=platform.state.envelope,
            now=platform.clock(),
        )
    return value.get_secret_value()


def put(platform: Platform, tenant_id: str, name: str = "webhook", value: bytes = b"hunter2"):
    with platform.session() as session:
        secrets.put(
            session,
            name,
            SecretBytes(value),
            tenant_id=tenant_id,
            actor="platform:test",
            envelope=platform.state.envelope,
            now=platform.clock(),
        )


def test_the_token_key_rotates_by_its_policy_and_no_token_ends_early(platform: Platform) -> None:
    fleet = Fleet(platform)
    device = fleet.enrol()
    assert keep_policies(platform.state) == 0
    assert states(platform, TOKENS) == {1: KeyState.active}
    platform.clock.advance(days=29)
    assert keep_policies(platform.state) == 0
    assert states(platform, TOKENS) == {1: KeyState.active, 2: KeyState.pending}
    published = platform.client.get("/.well-known/jwks.json").json()["keys"]
    assert [key["kid"] for key in published] == ["token-signing.2", "token-signing.1"]
    token = access_token(platform, device)
    platform.clock.advance(hours=23, minutes=55)
    assert keep_policies(platform.state) == 0
    token = access_token(platform, device)
    platform.clock.advance(minutes=6)
    assert keep_policies(platform.state) == 0
    assert states(platform, TOKENS) == {1: KeyState.decrypt_only, 2: KeyState.active}
    assert platform.client.get("/api/v1/packs", headers=bearer(token)).status_code == 200
    platform.clock.advance(hours=1)
    assert keep_policies(platform.state) == 0
    assert states(platform, TOKENS) == {1: KeyState.retired, 2: KeyState.active}
    trail = [
        action for action, subject in events(platform, "platform") if subject == f"key:{TOKENS}"
    ]
    assert trail == ["key.adopted", "key.staged", "key.rotated", "key.retired"]


def test_sealed_secrets_follow_the_rotation_and_then_the_old_version_goes(
    platform: Platform,
) -> None:
    tenants = [platform.tenant("acme"), platform.tenant("rival")]
    for tenant in tenants:
        put(platform, tenant)
    keep_policies(platform.state)
    platform.clock.advance(days=91)
    keep_policies(platform.state)
    assert states(platform, REST) == {1: KeyState.decrypt_only, 2: KeyState.active}
    assert ("secret.rewrapped", "secret:*") in events(platform, "rival")
    platform.clock.advance(days=8)
    keep_policies(platform.state)
    assert states(platform, REST)[1] is KeyState.retired
    assert [use(platform, tenant) for tenant in tenants] == [b"hunter2"] * 2


def test_a_version_under_which_something_is_sealed_is_not_retired(
    sqlite_platform: Platform,
) -> None:
    put(sqlite_platform, sqlite_platform.tenant())
    headers = sqlite_platform.caller(Role.security, "platform")
    post = sqlite_platform.client.post
    assert post("/api/v1/keys/data-at-rest/rotate", headers=headers).status_code in {200, 404}
    sqlite_platform.client.get("/api/v1/keys", headers=headers)
    post("/api/v1/keys/data-at-rest/rotate", headers=headers)
    refused = post("/api/v1/keys/data-at-rest/versions/1/retire", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (409, "key_version_needed")
    keep_policies(sqlite_platform.state)
    retired = post("/api/v1/keys/data-at-rest/versions/1/retire", headers=headers)
    assert retired.status_code == 200


def test_old_audit_heads_verify_after_rotation_and_retirement(sqlite_platform: Platform) -> None:
    state, tenant = sqlite_platform.state, sqlite_platform.tenant()
    rows = []
    for number in range(3):
        put(sqlite_platform, tenant, f"s{number}")
        with sqlite_platform.session() as session:
            rows.append(sign_head(session, tenant, keys=state.keys, now=state.now()))
        state.keys.rotate(key_id("audit-head"))
    state.keys.retire(key_id("audit-head"), 1)
    trust = trust_of(state.keys)
    assert [open_row(row, trust).seq for row in rows] == [row.seq for row in rows]


def test_due_destruction_is_done_and_recorded(sqlite_platform: Platform) -> None:
    headers = sqlite_platform.caller(Role.security)
    post = sqlite_platform.client.post
    post("/api/v1/keys", json={"name": "k", "purpose": "pack-signing"}, headers=headers)
    post("/api/v1/keys/k/rotate", headers=headers)
    post("/api/v1/keys/k/versions/1/retire", headers=headers)
    post(
        "/api/v1/keys/k/versions/1/destroy", json={"delay_seconds": 1}, headers=headers
    ).raise_for_status()
    keep_policies(sqlite_platform.state)
    assert "key.destroyed" not in [action for action, _ in events(sqlite_platform)]
    time.sleep(1)  # a custody goes by its own clock
    keep_policies(sqlite_platform.state)
    assert [action for action, _ in events(sqlite_platform)].count("key.destroyed") == 1
    shown = sqlite_platform.client.get(
        "/api/v1/keys/k", headers=sqlite_platform.caller(Role.security)
    ).json()
    assert shown["versions"][0]["state"] == "destroyed"


def test_a_rotation_outside_of_the_platform_is_noticed_and_recorded(
    sqlite_platform: Platform,
) -> None:
    keep_policies(sqlite_platform.state)
    sqlite_platform.state.keys.rotate(TOKENS)
    keep_policies(sqlite_platform.state)
    keep_policies(sqlite_platform.state)
    trail = [action for action, _ in events(sqlite_platform, "platform")]
    assert trail.count("key.changed_outside") == 1


def test_a_fleet_ca_that_rotates_makes_a_new_root_and_old_leaves_chain_to_the_old(
    platform: Platform,
) -> None:
    fleet = Fleet(platform)
    old = fleet.enrol()
    security = platform.caller(Role.security)
    listed = platform.client.get("/api/v1/keys", headers=security).json()["items"]
    assert [(row["name"], row["purpose"]) for row in listed] == [("fleet-ca", "fleet-ca")]
    rotated = platform.client.post("/api/v1/keys/fleet-ca/rotate", headers=security)
    assert rotated.json()["version"] == 2
    new = fleet.enrol()
    shown = platform.client.get("/api/v1/certificates/ca", headers=fleet.operator).json()
    assert shown["pem"] == new.answer["ca_pem"] != old.answer["ca_pem"]
    assert shown["replaced_pems"] == [old.answer["ca_pem"]]
    now = platform.clock().astimezone(UTC)
    for device in (old, new):
        leaf = x509.load_pem_x509_certificate(device.answer["certificate_pem"].encode())
        name = chain.verify(leaf, chain.load(device.answer["ca_pem"]), now=now)
        assert name.device_id == device.id
    assert access_token(platform, old)
    assert ("fleet-ca.replaced", listed and f"key:{listed[0]['key_id']}") in events(platform)


def test_the_task_runs_on_its_own(sqlite_url, tmp_path, clock) -> None:
    from support.platform import running, settings_for

    settings = settings_for(sqlite_url, tmp_path / "home")
    with running(settings, clock, key_policy_seconds=1) as platform:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if ("key.adopted", f"key:{TOKENS}") in events(platform, "platform"):
                return
            time.sleep(0.1)
    pytest.fail("no policy was kept")
