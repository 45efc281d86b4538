"""Attacks on sign-in: guessing, telling accounts apart, outliving a restart, riding a cookie."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from support.platform import PASSWORD, Platform, running
from tensorguard.platform.db.tables.people import LoginFailure, UserAccount, UserSession
from tensorguard.platform.principal import Role
from tensorguard.platform.users.throttle import ACCOUNT_FREE, ADDRESS_FREE, lock_time, network
from tensorguard.settings import Settings

WRONG = "not the password at all"


def seen(answer: Any) -> tuple[int, dict[str, object], str | None]:
    """What a guesser sees, but for the request id."""
    body = {k: v for k, v in answer.json().items() if k != "request_id"}
    return answer.status_code, body, answer.headers.get("www-authenticate")


def test_no_answer_tells_an_account_from_none(platform: Platform) -> None:
    tenant = platform.tenant()
    platform.user(tenant, Role.viewer, "ada")
    banned = platform.user(tenant, Role.viewer, "eve")
    with platform.session() as session:
        session.get_one(UserAccount, banned).disabled = True
    answers = [
        seen(platform.login("ada", WRONG)),
        seen(platform.login("nobody", WRONG)),
        seen(platform.login("eve", PASSWORD)),
        seen(platform.login("ada", WRONG, tenant="nowhere")),
    ]
    assert answers[0][0] == 401
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("username", ["ada", "nobody"])
def test_guessing_locks_an_account_and_one_that_does_not_exist_alike(
    platform: Platform, username: str
) -> None:
    platform.user(platform.tenant(), Role.viewer, "ada")
    statuses = [platform.login(username, WRONG).status_code for _ in range(ACCOUNT_FREE + 1)]
    assert statuses == [401] * ACCOUNT_FREE + [429]
    locked = platform.login(username, PASSWORD)
    assert locked.status_code == 429
    assert 1 <= int(locked.headers["retry-after"]) <= 31
    assert locked.json()["remedy"]


def test_the_right_password_does_not_open_a_locked_account_until_its_time(
    platform: Platform,
) -> None:
    platform.user(platform.tenant(), Role.viewer, "ada")
    for _ in range(ACCOUNT_FREE):
        platform.login("ada", WRONG)
    assert platform.login("ada").status_code == 429
    platform.clock.advance(seconds=31)
    assert platform.login("ada").status_code == 200
    assert platform.login("ada", WRONG).status_code == 401  # the count began anew


def test_a_lock_outlives_a_restart(platform: Platform, platform_settings: Settings) -> None:
    platform.user(platform.tenant(), Role.viewer, "ada")
    for _ in range(ACCOUNT_FREE):
        platform.login("ada", WRONG)
    with running(platform_settings, platform.clock) as restarted:
        assert restarted.login("ada").status_code == 429


def test_spraying_over_accounts_locks_the_address(sqlite_platform: Platform) -> None:
    sqlite_platform.user(sqlite_platform.tenant(), Role.viewer, "ada")
    for number in range(ADDRESS_FREE):
        assert sqlite_platform.login(f"user{number}", WRONG).status_code == 401
    assert sqlite_platform.login("ada").status_code == 429


def test_locks_grow_and_end() -> None:
    waits = [lock_time(n, ACCOUNT_FREE).total_seconds() for n in range(40)]
    assert waits[:ACCOUNT_FREE] == [0] * ACCOUNT_FREE
    assert waits == sorted(waits)
    assert max(waits) == 900


def test_ipv6_neighbours_count_as_one_client() -> None:
    assert network("2001:db8:1:2::1") == network("2001:db8:1:2:ffff::9")
    assert network("2001:db8:1:2::1") != network("2001:db8:1:3::1")
    assert network("192.0.2.1") != network("192.0.2.2")


def test_parallel_guesses_get_no_extra_tries(platform: Platform) -> None:
    user = platform.user(platform.tenant(), Role.viewer, "ada")
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: platform.login("ada", WRONG).status_code, range(8)))
    assert sorted(statuses) == [401] * ACCOUNT_FREE + [429] * (8 - ACCOUNT_FREE)
    with platform.session() as session:
        assert session.get_one(UserAccount, user).failed_logins == ACCOUNT_FREE


def test_the_memory_of_failures_is_bounded(platform: Platform) -> None:
    for number in range(3):
        platform.login(f"user{number}", WRONG)
    platform.clock.advance(hours=2)
    platform.login("another", WRONG)
    with platform.session() as session:
        assert session.scalar(select(func.count()).select_from(LoginFailure)) == 2


def test_a_cookie_alone_writes_nothing(sqlite_platform: Platform) -> None:
    sqlite_platform.user(sqlite_platform.tenant(), Role.admin, "ada")
    sqlite_platform.login("ada")
    foreign = sqlite_platform.caller(Role.admin, "globex")
    other = sqlite_platform.client.get("/api/v1/auth/me", headers=foreign).json()["csrf_token"]
    new = {"username": "mallory", "password": PASSWORD, "role": "admin"}
    for headers in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": other}, {"X-CSRF-Token": "é"}):
        encoded = {name: value.encode() for name, value in headers.items()}
        answer = sqlite_platform.client.post("/api/v1/users", json=new, headers=encoded)
        assert (answer.status_code, answer.json()["code"]) == (403, "csrf")


def test_a_session_of_before_does_not_outlive_a_new_password(platform: Platform) -> None:
    admin = platform.caller(Role.admin)
    user = platform.user(platform.tenant(), Role.viewer, "ada")
    stolen = platform.sign_in(user)
    change = {"password": "another plough in the south"}
    platform.client.patch(f"/api/v1/users/{user}", json=change, headers=admin)
    assert platform.client.get("/api/v1/auth/me", headers=stolen).status_code == 401
    assert platform.login("ada").status_code == 401
    assert platform.login("ada", change["password"]).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YWRhOmFkYQ==",
        "Bearer tgs_",
        "Bearer tgp_x",
        "Bearer tgs_" + "A" * 43,
        "Bearer a.b.c",
        "Bearer ..",
        "Bearer eyJhbGciOiJub25lIn0.e30.",
        "Bearer " + "x" * 9000,
        "Bearer tgs_' OR 1=1 --",
        "Bearer tgs_\u00ff",
    ],
)
def test_odd_credentials_are_refused_alike(sqlite_platform: Platform, header: str) -> None:
    answer = sqlite_platform.client.get(
        "/api/v1/auth/me", headers={"Authorization": header.encode("latin-1")}
    )
    assert answer.status_code == 401
    if (
        header.count(".") != 2
    ):  # an access token says why it was refused, so that a device renews it
        assert answer.json()["code"] == "unauthenticated"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_what_the_database_stores_opens_nothing(platform: Platform) -> None:
    platform.caller(Role.admin)
    with platform.session() as session:
        stored = session.scalars(select(UserSession.token_hash)).one()
    for token in (stored, f"tgs_{stored}"):
        headers = {"Authorization": f"Bearer {token}"}
        assert platform.client.get("/api/v1/auth/me", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"tenant":1}', b"\xff", b'{"tenant":"a"}' * 3, b"[" * 5000]
)
def test_a_malformed_login_is_a_4xx(sqlite_platform: Platform, body: bytes) -> None:
    answer = sqlite_platform.client.post(
        "/api/v1/auth/login", content=body, headers={"Content-Type": "application/json"}
    )
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_refused_login_never_echoes_the_password(sqlite_platform: Platform) -> None:
    body = {"tenant": "acme", "username": "ada", "password": WRONG, "extra": WRONG}
    answer = sqlite_platform.client.post("/api/v1/auth/login", json=body)
    assert answer.status_code == 422
    assert WRONG not in answer.text
