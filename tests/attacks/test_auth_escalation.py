"""Attacks by people and tokens that may something: more scopes, other tenants, forged cursors."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.devices import Fleet
from support.platform import PASSWORD, Platform
from tensorguard.platform.principal import ROLE_SCOPES, Role, Scope

NEW = {"username": "mallory", "password": PASSWORD, "role": "admin"}
OTHERS = [role for role in Role if role is not Role.admin]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def make(platform: Platform, headers: dict[str, str], scopes: list[str], **body: object) -> str:
    answer = platform.client.post(
        "/api/v1/tokens", json={"name": "t", "scopes": scopes, **body}, headers=headers
    )
    assert answer.status_code == 201, answer.text
    return answer.json()["token"]


@pytest.mark.parametrize("role", OTHERS)
def test_only_an_admin_changes_people(sqlite_platform: Platform, role: Role) -> None:
    victim = sqlite_platform.user(sqlite_platform.tenant(), Role.admin)
    caller = sqlite_platform.caller(role)
    me = sqlite_platform.client.get("/api/v1/auth/me", headers=caller).json()["id"]
    client = sqlite_platform.client
    assert client.post("/api/v1/users", json=NEW, headers=caller).status_code == 403
    for target in (me, victim):
        for change in ({"role": "admin"}, {"disabled": True}, {"password": PASSWORD}):
            answer = client.patch(f"/api/v1/users/{target}", json=change, headers=caller)
            assert answer.status_code == 403


def test_a_token_cannot_change_people_or_make_tokens(sqlite_platform: Platform) -> None:
    admin = sqlite_platform.caller(Role.admin)
    token = bearer(make(sqlite_platform, admin, ["users:write", "tokens:write", "users:read"]))
    client = sqlite_platform.client
    assert client.post("/api/v1/users", json=NEW, headers=token).status_code == 403
    body = {"name": "child", "scopes": ["users:read"]}
    assert client.post("/api/v1/tokens", json=body, headers=token).status_code == 403


@pytest.mark.parametrize("role", [Role.operator, Role.engineer, Role.security, Role.admin])
def test_no_one_gives_away_what_they_do_not_have(sqlite_platform: Platform, role: Role) -> None:
    caller = sqlite_platform.caller(role)
    for scope in frozenset(Scope) - ROLE_SCOPES[role]:
        body = {"name": "t", "scopes": ["devices:read", scope.value]}
        answer = sqlite_platform.client.post("/api/v1/tokens", json=body, headers=caller)
        assert answer.status_code == 403, scope


def test_a_token_loses_what_its_creator_loses(platform: Platform) -> None:
    admin = platform.caller(Role.admin)
    user = platform.user(platform.tenant(), Role.operator, "ada")
    token = bearer(make(platform, platform.sign_in(user), ["devices:read", "devices:write"]))
    place = f"/api/v1/users/{user}"
    me = platform.client.get("/api/v1/auth/me", headers=token).json()
    assert me["scopes"] == ["devices:read", "devices:write"]
    platform.client.patch(place, json={"role": "viewer"}, headers=admin)
    me = platform.client.get("/api/v1/auth/me", headers=token).json()
    assert me["scopes"] == ["devices:read"]
    platform.client.patch(place, json={"disabled": True}, headers=admin)
    assert platform.client.get("/api/v1/auth/me", headers=token).status_code == 401


def test_a_device_token_cannot_be_more_than_that(platform: Platform) -> None:
    fleet = Fleet(platform)
    device = fleet.enrol()
    client = platform.client
    for scopes in (["telemetry:read"], ["telemetry:write", "telemetry:read"]):
        body = {"name": "t", "scopes": scopes, "device_id": device.id}
        answer = client.post("/api/v1/tokens", json=body, headers=fleet.operator)
        assert answer.status_code == 422
    body = {"name": "t", "scopes": ["telemetry:write"]}  # bound to no device: no role has it
    assert client.post("/api/v1/tokens", json=body, headers=fleet.operator).status_code == 403
    foreign = platform.caller(Role.operator, "globex")
    body["device_id"] = device.id
    assert client.post("/api/v1/tokens", json=body, headers=foreign).status_code == 404
    engineer = platform.caller(Role.engineer)
    assert client.post("/api/v1/tokens", json=body, headers=engineer).status_code == 403


def test_a_device_token_dies_with_its_creators_rights(platform: Platform) -> None:
    fleet = Fleet(platform)
    device = fleet.enrol()
    user = platform.user(platform.tenant(), Role.operator, "ada")
    token = make(platform, platform.sign_in(user), ["telemetry:write"], device_id=device.id)
    admin = platform.caller(Role.admin)
    platform.client.patch(f"/api/v1/users/{user}", json={"role": "viewer"}, headers=admin)
    me = platform.client.get("/api/v1/auth/me", headers=bearer(token)).json()
    assert me["scopes"] == []


def test_another_tenants_people_and_tokens_are_404(platform: Platform) -> None:
    theirs = platform.user(platform.tenant("globex"), Role.operator, "grace")
    signed_in = platform.sign_in(theirs)
    made = platform.client.post(
        "/api/v1/tokens", json={"name": "t", "scopes": ["devices:read"]}, headers=signed_in
    ).json()
    admin = platform.caller(Role.admin, "acme")
    client = platform.client
    assert client.get(f"/api/v1/users/{theirs}", headers=admin).status_code == 404
    change = {"password": "another plough in the south"}
    answer = client.patch(f"/api/v1/users/{theirs}", json=change, headers=admin)
    assert answer.status_code == 404
    assert client.delete(f"/api/v1/tokens/{made['id']}", headers=admin).status_code == 404
    assert theirs not in client.get("/api/v1/users", headers=admin).text
    assert client.get("/api/v1/auth/me", headers=signed_in).status_code == 200


def test_two_admins_cannot_remove_each_other_at_once(platform: Platform) -> None:
    tenant = platform.tenant()
    users = [platform.user(tenant, Role.admin, name) for name in ("ada", "grace")]
    headers = [platform.sign_in(user) for user in users]

    def demote(number: int) -> int:
        return platform.client.patch(
            f"/api/v1/users/{users[1 - number]}", json={"role": "viewer"}, headers=headers[number]
        ).status_code

    with ThreadPoolExecutor(2) as pool:
        statuses = sorted(pool.map(demote, range(2)))
    assert statuses[0] == 200
    assert statuses[1] in {401, 403, 409}


def cursor_of(platform: Platform, headers: dict[str, str], place: str) -> str:
    page = platform.client.get(place, params={"limit": 1}, headers=headers).json()
    return page["next_cursor"]


def test_a_cursor_serves_one_list_of_one_tenant(sqlite_platform: Platform) -> None:
    acme, globex = (sqlite_platform.caller(Role.admin, name) for name in ("acme", "globex"))
    for name in ("acme", "globex"):
        sqlite_platform.user(sqlite_platform.tenant(name), Role.viewer)
    cursor = cursor_of(sqlite_platform, acme, "/api/v1/users")
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    forged = base64.urlsafe_b64encode(raw[:16] + b"zzz").decode()
    client = sqlite_platform.client
    places = [(globex, "/api/v1/users", cursor), (acme, "/api/v1/audit", cursor)]
    places += [(acme, "/api/v1/users", odd) for odd in (forged, "", "!", "AAAA", "a" * 1000)]
    for headers, place, value in places:
        answer = client.get(place, params={"cursor": value}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_cursor")
    assert client.get("/api/v1/users", params={"cursor": cursor}, headers=acme).status_code == 200


def test_an_idempotency_key_is_the_callers_own(sqlite_platform: Platform) -> None:
    body = {"name": "t", "scopes": ["devices:read"]}
    ids = set()
    for tenant in ("acme", "globex"):
        headers = {**sqlite_platform.caller(Role.operator, tenant), "Idempotency-Key": "same"}
        ids.add(
            sqlite_platform.client.post("/api/v1/tokens", json=body, headers=headers).json()["id"]
        )
    assert len(ids) == 2
