"""Revoking a device: no new token from that moment, and nothing old outlives ten minutes."""

import pytest

from support.devices import Fleet, access_token, ask, assertion, bearer, events
from tensorguard.platform.principal import Role


@pytest.mark.invariant("TG-I13")
def test_a_revoked_device_gets_no_new_token(platform):
    fleet = Fleet(platform)
    device = fleet.enrol()
    prepared = assertion(platform, device)
    assert fleet.revoke(device).json()["revocation_reason"] == "stolen"
    for signed in (prepared, assertion(platform, device)):
        response = ask(platform, signed)
        assert response.status_code == 401
        assert response.json()["error"] == "invalid_client"


@pytest.mark.invariant("TG-I13")
def test_the_last_token_of_a_revoked_device_ends_within_ten_minutes(platform):
    fleet = Fleet(platform)
    device = fleet.enrol()
    token = bearer(access_token(platform, device))
    fleet.revoke(device)
    platform.clock.advance(minutes=10)
    assert platform.client.get("/api/v1/packs", headers=token).status_code == 401


def test_revoking_takes_the_certificates_along(platform):
    fleet = Fleet(platform)
    device = fleet.enrol()
    fleet.revoke(device)
    items = platform.client.get("/api/v1/certificates", headers=fleet.operator).json()["items"]
    assert [item["revoked"] is not None for item in items] == [True]


def test_revoking_one_device_leaves_the_others(platform):
    fleet = Fleet(platform)
    device, other = fleet.enrol(), fleet.enrol()
    fleet.revoke(device)
    assert ask(platform, assertion(platform, other)).status_code == 200


def test_revoking_twice_is_one_event(platform):
    fleet = Fleet(platform)
    device = fleet.enrol()
    first, second = fleet.revoke(device), fleet.revoke(device)
    assert first.json() == second.json()
    assert [action for action, _ in events(platform)].count("device.revoked") == 1


def test_an_api_token_bound_to_the_device_dies_with_it(platform):
    fleet = Fleet(platform)
    device = fleet.enrol()
    made = platform.client.post(
        "/api/v1/tokens",
        json={
            "name": "exporter",
            "scopes": ["telemetry:write"],
            "expires_in": 3600,
            "device_id": device.id,
        },
        headers=fleet.operator,
    )
    assert made.status_code == 201, made.text
    token = bearer(made.json()["token"])
    assert platform.client.get("/api/v1/packs", headers=token).status_code == 403
    fleet.revoke(device)
    assert platform.client.get("/api/v1/packs", headers=token).status_code == 401


@pytest.mark.parametrize("role", [Role.viewer, Role.engineer])
def test_who_may_not_write_devices_revokes_none(sqlite_platform, role):
    device = Fleet(sqlite_platform).enrol()
    answer = sqlite_platform.client.post(
        f"/api/v1/devices/{device.id}/revocation", json={}, headers=sqlite_platform.caller(role)
    )
    assert answer.status_code == 403


def test_a_device_does_not_administer(sqlite_platform):
    device = Fleet(sqlite_platform).enrol()
    token = bearer(access_token(sqlite_platform, device))
    for method, path in (
        ("GET", "/api/v1/devices"),
        ("GET", "/api/v1/fleets"),
        ("POST", f"/api/v1/devices/{device.id}/revocation"),
        ("GET", "/api/v1/users"),
    ):
        body = {"json": {}} if method == "POST" else {}
        response = sqlite_platform.client.request(method, path, headers=token, **body)
        assert response.status_code == 403, path


def test_an_expired_access_token_is_refused(sqlite_platform):
    device = Fleet(sqlite_platform).enrol()
    token = bearer(access_token(sqlite_platform, device))
    sqlite_platform.clock.advance(seconds=599)
    assert sqlite_platform.client.get("/api/v1/packs", headers=token).status_code == 200
    sqlite_platform.clock.advance(seconds=1)
    assert sqlite_platform.client.get("/api/v1/packs", headers=token).status_code == 401


def test_a_token_of_another_platform_is_refused(sqlite_platform, tmp_path, clock):
    from support.platform import running

    device = Fleet(sqlite_platform).enrol()
    token = bearer(access_token(sqlite_platform, device))
    url = "https://other.example"
    with running(sqlite_platform.settings, clock, public_url=url) as other:  # the same keys
        assert other.client.get("/api/v1/packs", headers=token).status_code == 401
