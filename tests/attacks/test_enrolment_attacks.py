"""Enrolment: one token, one device, one proven key; a failed try burns nothing and stores nothing."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from support.csrs import csr, ed25519, p256
from support.devices import Fleet, events
from tensorguard.identity import chain
from tensorguard.platform.db.tables.devices import Certificate, Device
from tensorguard.platform.principal import Role


def count(platform, table):
    with platform.session() as session:
        return session.query(table).count()


@pytest.mark.parametrize("make", [p256, ed25519])
def test_a_token_and_a_request_make_a_device_with_a_certificate(platform, make):
    fleet = Fleet(platform)
    device = fleet.enrol(make(), "arm-7")
    leaf = chain.load(device.answer["certificate_pem"])
    name = chain.verify(leaf, chain.load(device.answer["ca_pem"]), now=platform.clock())
    assert (name.tenant_id, name.device_id) == (device.answer["tenant"], device.id)
    shown = platform.client.get(f"/api/v1/devices/{device.id}", headers=fleet.operator).json()
    assert (shown["name"], shown["fleet_id"], shown["revoked"]) == ("arm-7", fleet.id, None)
    assert device.answer["token_endpoint"] == "http://testserver/oauth/token"
    assert [action for action, _ in events(platform)][-4:] == [
        "fleet-ca.created",
        "enrolment.created",
        "device.enrolled",
        "certificate.issued",
    ]


def test_an_enrolment_token_used_twice_is_refused(platform):
    fleet = Fleet(platform)
    token = fleet.enrolment()
    assert fleet.redeem(token, csr(p256())).status_code == 201
    second = fleet.redeem(token, csr(p256()))
    assert second.status_code == 401
    assert second.json()["code"] == "enrolment_refused"
    assert count(platform, Device) == 1


def test_ten_redeems_at_once_make_one_device(platform):
    fleet = Fleet(platform)
    token = fleet.enrolment()
    requests = [csr(p256()) for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda request: fleet.redeem(token, request), requests))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 9
    assert count(platform, Device) == count(platform, Certificate) == 1


def test_one_key_with_ten_tokens_at_once_makes_one_device(platform):
    fleet = Fleet(platform)
    request = csr(p256())
    tokens = [fleet.enrolment() for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda token: fleet.redeem(token, request), tokens))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9
    assert count(platform, Device) == 1


def test_the_key_of_a_revoked_device_does_not_come_back(platform):
    fleet = Fleet(platform)
    device = fleet.enrol()
    fleet.revoke(device)
    again = fleet.redeem(fleet.enrolment(), csr(device.key))
    assert again.json()["code"] == "device_key_taken"


def test_an_expired_token_is_refused(platform):
    fleet = Fleet(platform)
    token = fleet.enrolment(expires_in=60)
    platform.clock.advance(seconds=60)
    assert fleet.redeem(token, csr(p256())).status_code == 401


@pytest.mark.parametrize("seconds", [0, -1, 59, 86_401, 10**12, "soon", None])
def test_a_token_lives_a_minute_to_a_day(sqlite_platform, seconds):
    fleet = Fleet(sqlite_platform)
    answer = sqlite_platform.client.post(
        "/api/v1/enrolments",
        json={"fleet_id": fleet.id, "expires_in": seconds},
        headers=fleet.operator,
    )
    assert answer.status_code == 422


BAD_REQUESTS = {
    "garbage": ("garbage", 400),
    "empty": ("", 422),
    "rsa": (csr(rsa.generate_private_key(65537, 2048)), 422),
    "megabyte": ("A" * 1_000_000, 422),
    "two": (csr(p256()) + csr(p256()), 400),
    "nul": ("\0" * 100, 400),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_a_bad_request_burns_no_token_and_stores_nothing(platform, kind):
    text, status = BAD_REQUESTS[kind]
    fleet = Fleet(platform)
    token = fleet.enrolment()
    before = events(platform)
    refused = fleet.redeem(token, text)
    assert refused.status_code == status
    assert refused.json()["remedy"]
    assert count(platform, Device) == 0
    assert events(platform) == before
    assert fleet.redeem(token, csr(p256())).status_code == 201


@pytest.mark.parametrize("name", ["", "../x", "a b", "a" * 64, "\0", "é"])
def test_odd_device_names_are_refused(sqlite_platform, name):
    fleet = Fleet(sqlite_platform)
    assert fleet.redeem(fleet.enrolment(), csr(p256()), name).status_code == 422


def test_guessing_tokens_is_slowed_down(sqlite_platform):
    fleet = Fleet(sqlite_platform)
    request = csr(p256())
    answers = [fleet.redeem(f"tge_{number}", request) for number in range(25)]
    assert [answer.status_code for answer in answers] == [401] * 20 + [429] * 5
    assert int(answers[-1].headers["retry-after"]) > 0
    sqlite_platform.clock.advance(minutes=1)
    assert fleet.redeem(fleet.enrolment(), request).status_code == 201


def test_a_token_is_stored_as_a_keyed_hash_only(sqlite_platform):
    token = Fleet(sqlite_platform).enrolment()
    path = sqlite_platform.settings.database_url.get_secret_value().partition("///")[2]
    stored = b""
    for suffix in ("", "-wal"):
        stored += Path(path + suffix).read_bytes()
    assert token.encode() not in stored
    assert token.removeprefix("tge_").encode() not in stored


@pytest.mark.parametrize("role", [Role.viewer, Role.engineer, Role.security])
def test_who_does_not_operate_fleets_makes_no_enrolment(sqlite_platform, role):
    fleet = Fleet(sqlite_platform)
    answer = sqlite_platform.client.post(
        "/api/v1/enrolments",
        json={"fleet_id": fleet.id},
        headers=sqlite_platform.caller(role),
    )
    assert answer.status_code == 403
