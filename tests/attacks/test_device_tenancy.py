"""Another tenant's fleet, device, certificate, enrolment and pack are 404, whoever asks."""

import pytest

from support.devices import Fleet
from tensorguard.platform.principal import Role


@pytest.mark.invariant("TG-I08")
def test_another_tenants_things_are_not_found(platform):
    ours = Fleet(platform, "acme")
    device = ours.enrol()
    certificates = platform.client.get("/api/v1/certificates", headers=ours.operator).json()
    serial = certificates["items"][0]["serial"]
    theirs = platform.caller(Role.admin, "rival")
    client = platform.client
    for path in (
        f"/api/v1/fleets/{ours.id}",
        f"/api/v1/devices/{device.id}",
        f"/api/v1/certificates/{serial}",
        "/api/v1/certificates/ca",
    ):
        assert client.get(path, headers=theirs).status_code == 404, path
        assert client.get(path, headers=ours.operator).status_code == 200, path
    revoke = f"/api/v1/devices/{device.id}/revocation"
    assert client.post(revoke, json={}, headers=theirs).status_code == 404
    enrol = client.post("/api/v1/enrolments", json={"fleet_id": ours.id}, headers=theirs)
    assert enrol.status_code == 404
    for path in ("/api/v1/fleets", "/api/v1/devices", "/api/v1/certificates"):
        assert client.get(path, headers=theirs).json()["items"] == []


def test_tenants_have_separate_roots(sqlite_platform):
    ours, theirs = Fleet(sqlite_platform, "acme").enrol(), Fleet(sqlite_platform, "rival").enrol()
    assert ours.answer["ca_pem"] != theirs.answer["ca_pem"]
    assert ours.answer["tenant"] != theirs.answer["tenant"]


@pytest.mark.parametrize(
    "path", ["/api/v1/fleets/%00", "/api/v1/devices/%00", "/api/v1/certificates/%00",
             "/api/v1/packs/%00", "/api/v1/devices/" + "x" * 5000, "/api/v1/packs/..%2f..%2fkeys"]
)  # fmt: skip
def test_odd_identifiers_are_not_found(platform, path):
    headers = platform.caller(Role.admin)
    assert platform.client.get(path, headers=headers).status_code in {400, 404}


def test_fleets_page_by_cursor(sqlite_platform):
    headers = sqlite_platform.caller(Role.operator)
    names = [f"fleet-{number}" for number in range(5)]
    for name in reversed(names):
        made = sqlite_platform.client.post("/api/v1/fleets", json={"name": name}, headers=headers)
        assert made.status_code == 201
    seen, cursor = [], ""
    while cursor is not None:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = sqlite_platform.client.get("/api/v1/fleets", params=query, headers=headers).json()
        seen += [fleet["name"] for fleet in page["items"]]
        cursor = page["next_cursor"]
    assert seen == names


def test_a_fleet_name_is_unique_in_its_tenant_and_a_retry_is_not_a_second_fleet(platform):
    headers = platform.caller(Role.operator)
    post = platform.client.post
    body = {"name": "arms"}
    keyed = {**headers, "Idempotency-Key": "one"}
    first = post("/api/v1/fleets", json=body, headers=keyed)
    again = post("/api/v1/fleets", json=body, headers=keyed)
    assert first.json() == again.json()
    assert post("/api/v1/fleets", json=body, headers=headers).json()["code"] == "fleet_exists"
    assert post(
        "/api/v1/fleets", json=body, headers=platform.caller(Role.operator, "rival")
    ).is_success
