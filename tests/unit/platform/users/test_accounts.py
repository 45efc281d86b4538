"""Accounts over HTTP."""

from __future__ import annotations

import pytest

from support.platform import PASSWORD, Platform
from tensorguard.errors import TensorGuardError
from tensorguard.platform.principal import Role
from tensorguard.platform.users.passwords import WeakPassword, check_policy

NEW = {"username": "Grace", "password": PASSWORD, "role": "operator"}


def test_an_admin_makes_lists_and_changes_accounts(platform: Platform) -> None:
    admin = platform.caller(Role.admin)
    made = platform.client.post("/api/v1/users", json=NEW, headers=admin)
    assert made.status_code == 201, made.text
    assert made.json()["username"] == "grace"
    assert "password" not in made.text
    listed = platform.client.get("/api/v1/users", headers=admin).json()["items"]
    assert "grace" in {user["username"] for user in listed}
    place = f"/api/v1/users/{made.json()['id']}"
    changed = platform.client.patch(place, json={"role": "engineer"}, headers=admin)
    assert changed.json()["role"] == "engineer"
    assert platform.client.get(place, headers=admin).json()["role"] == "engineer"
    assert platform.login("grace").status_code == 200


def test_each_change_is_an_audit_event(platform: Platform) -> None:
    admin = platform.caller(Role.admin)
    user = platform.client.post("/api/v1/users", json=NEW, headers=admin).json()
    for change in ({"disabled": True}, {"disabled": True}, {"disabled": False}):
        platform.client.patch(f"/api/v1/users/{user['id']}", json=change, headers=admin)
    reader = platform.caller(Role.security)
    events = platform.client.get("/api/v1/audit", headers=reader).json()["items"]
    about = [(e["action"], e["details"]) for e in events if e["subject"] == f"user:{user['id']}"]
    assert about == [
        ("user.created", {"role": "operator", "username": "grace"}),
        ("user.changed", {"disabled": True}),
        ("user.changed", {"disabled": False}),
    ]


def test_a_name_is_taken_once(platform: Platform) -> None:
    admin = platform.caller(Role.admin)
    assert platform.client.post("/api/v1/users", json=NEW, headers=admin).status_code == 201
    again = platform.client.post("/api/v1/users", json=NEW, headers=admin)
    assert (again.status_code, again.json()["code"]) == (409, "user_exists")


@pytest.mark.parametrize("change", [{"disabled": True}, {"role": "viewer"}])
def test_the_last_admin_stays(platform: Platform, change: dict[str, object]) -> None:
    admin = platform.caller(Role.admin)
    me = platform.client.get("/api/v1/auth/me", headers=admin).json()["id"]
    refused = platform.client.patch(f"/api/v1/users/{me}", json=change, headers=admin)
    assert (refused.status_code, refused.json()["code"]) == (409, "last_admin")
    platform.user(platform.tenant(), Role.admin, "second")
    changed = platform.client.patch(f"/api/v1/users/{me}", json=change, headers=admin)
    assert changed.status_code == 200
    assert platform.client.get("/api/v1/auth/me", headers=admin).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {**NEW, "role": "god"},
        {**NEW, "username": "a b"},
        {**NEW, "username": "x" * 65},
        {**NEW, "password": "short"},
        {**NEW, "extra": 1},
        {"username": "u"},
        [],
        "text",
    ],
)
def test_a_bad_account_is_refused_and_not_echoed(sqlite_platform: Platform, body: object) -> None:
    admin = sqlite_platform.caller(Role.admin)
    answer = sqlite_platform.client.post("/api/v1/users", json=body, headers=admin)
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"
    assert PASSWORD not in answer.text
    assert len(sqlite_platform.client.get("/api/v1/users", headers=admin).json()["items"]) == 1


@pytest.mark.parametrize(
    "password",
    [
        "",
        "elevenchars",
        "aaaaaaaaaaaaaaaa",
        "password1234",
        "Passw0rd!2024",
        "administrator",
        "ada-ada-ada-ada",
        "ada.lovelace",
        "123456789012",
        "x" * 1025,
    ],
)
def test_trivial_passwords_are_refused(password: str) -> None:
    with pytest.raises(WeakPassword):
        check_policy(password, username="ada.lovelace")


@pytest.mark.parametrize("password", [PASSWORD, "kT9#vQ2m!xLp", "пароль из пяти слов тут"])
def test_good_passwords_pass(password: str) -> None:
    assert check_policy(password, username="ada") == password


def test_errors_here_carry_remedies() -> None:
    assert issubclass(WeakPassword, TensorGuardError)
    assert WeakPassword.remedy
