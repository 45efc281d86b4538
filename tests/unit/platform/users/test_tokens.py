"""API tokens: shown once, scoped, expiring, revocable, bound to a device."""

from __future__ import annotations

import pytest

from support.devices import Fleet
from support.platform import Platform
from tensorguard.platform.principal import Role

READER = {"name": "dashboards", "scopes": ["telemetry:read", "devices:read"]}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def make(platform: Platform, headers: dict[str, str], **body: object) -> dict[str, object]:
    answer = platform.client.post("/api/v1/tokens", json={**READER, **body}, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_token_works_until_it_is_revoked(platform: Platform) -> None:
    operator = platform.caller(Role.operator)
    made = make(platform, operator)
    me = platform.client.get("/api/v1/auth/me", headers=bearer(made["token"])).json()
    assert (me["kind"], me["scopes"]) == ("api-token", ["devices:read", "telemetry:read"])
    listed = platform.client.get("/api/v1/tokens", headers=operator)
    assert made["token"] not in listed.text
    assert listed.json()["items"][0]["last_used"] is not None
    place = f"/api/v1/tokens/{made['id']}"
    assert platform.client.delete(place, headers=operator).status_code == 204
    assert platform.client.delete(place, headers=operator).status_code == 204
    gone = platform.client.get("/api/v1/auth/me", headers=bearer(made["token"]))
    assert gone.status_code == 401


def test_a_token_expires(sqlite_platform: Platform) -> None:
    operator = sqlite_platform.caller(Role.operator)
    made = make(sqlite_platform, operator, expires_in=60)
    headers = bearer(made["token"])
    assert sqlite_platform.client.get("/api/v1/auth/me", headers=headers).status_code == 200
    sqlite_platform.clock.advance(seconds=60)
    assert sqlite_platform.client.get("/api/v1/auth/me", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": []},
        {"scopes": ["everything"]},
        {"expires_in": 0},
        {"expires_in": 366 * 86_400},
        {"name": ""},
        {"name": "line\nbreak"},
        {"device_id": "x" * 40},
    ],
)
def test_a_bad_token_is_refused(sqlite_platform: Platform, body: dict[str, object]) -> None:
    operator = sqlite_platform.caller(Role.operator)
    answer = sqlite_platform.client.post(
        "/api/v1/tokens", json={**READER, **body}, headers=operator
    )
    assert answer.status_code == 422
    assert sqlite_platform.client.get("/api/v1/tokens", headers=operator).json()["items"] == []


def test_a_token_for_one_device_writes_telemetry_and_nothing_else(platform: Platform) -> None:
    fleet = Fleet(platform)
    device = fleet.enrol()
    made = make(platform, fleet.operator, scopes=["telemetry:write"], device_id=device.id)
    me = platform.client.get("/api/v1/auth/me", headers=bearer(made["token"])).json()
    assert (me["scopes"], me["device_id"]) == (["telemetry:write"], device.id)
    fleet.revoke(device)
    gone = platform.client.get("/api/v1/auth/me", headers=bearer(made["token"]))
    assert gone.status_code == 401
    again = {**READER, "scopes": ["telemetry:write"], "device_id": device.id}
    refused = platform.client.post("/api/v1/tokens", json=again, headers=fleet.operator)
    assert refused.status_code == 422


def test_people_see_their_own_tokens_and_security_sees_all(sqlite_platform: Platform) -> None:
    first, second = (sqlite_platform.caller(Role.operator) for _ in range(2))
    made = make(sqlite_platform, first)
    assert sqlite_platform.client.get("/api/v1/tokens", headers=second).json()["items"] == []
    place = f"/api/v1/tokens/{made['id']}"
    assert sqlite_platform.client.delete(place, headers=second).status_code == 404
    officer = sqlite_platform.caller(Role.security)
    listed = sqlite_platform.client.get("/api/v1/tokens", headers=officer).json()["items"]
    assert [token["id"] for token in listed] == [made["id"]]
    assert sqlite_platform.client.delete(place, headers=officer).status_code == 204
