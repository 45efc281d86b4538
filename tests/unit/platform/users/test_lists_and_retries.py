"""Cursors and Idempotency-Key, on the lists and creates of people."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from support.platform import PASSWORD, Platform
from tensorguard.platform.principal import Role

NEW = {"username": "grace", "password": PASSWORD, "role": "viewer"}


def test_a_list_pages_through_every_item_once(platform: Platform) -> None:
    admin = platform.caller(Role.admin)
    tenant = platform.tenant()
    for number in range(6):
        platform.user(tenant, Role.viewer, f"v{number}")
    seen, cursor, pages = [], None, 0
    while True:
        query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = platform.client.get("/api/v1/users", params=query, headers=admin).json()
        seen += [user["username"] for user in page["items"]]
        cursor, pages = page["next_cursor"], pages + 1
        if cursor is None:
            break
    assert pages == 3
    assert seen == sorted(seen)
    assert len(set(seen)) == 7


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": "x"}, {"limit": -1}])
def test_a_bad_limit_is_refused(sqlite_platform: Platform, query: dict[str, object]) -> None:
    admin = sqlite_platform.caller(Role.admin)
    answer = sqlite_platform.client.get("/api/v1/users", params=query, headers=admin)
    assert answer.status_code == 422


def test_a_limit_over_the_largest_page_is_the_largest_page(sqlite_platform: Platform) -> None:
    admin = sqlite_platform.caller(Role.admin)
    query = {"limit": 10**30}
    answer = sqlite_platform.client.get("/api/v1/users", params=query, headers=admin)
    assert answer.status_code == 200


def test_the_same_create_again_answers_the_same(platform: Platform) -> None:
    admin = {**platform.caller(Role.admin), "Idempotency-Key": "k-1"}
    first = platform.client.post("/api/v1/users", json=NEW, headers=admin)
    again = platform.client.post("/api/v1/users", json=NEW, headers=admin)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    other = platform.client.post("/api/v1/users", json={**NEW, "role": "admin"}, headers=admin)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_ten_at_once_create_one(platform: Platform) -> None:
    admin = {**platform.caller(Role.admin), "Idempotency-Key": "k-1"}
    body = {"name": "t", "scopes": ["devices:read"]}

    def create(_: int) -> tuple[int, str]:
        answer = platform.client.post("/api/v1/tokens", json=body, headers=admin)
        return answer.status_code, answer.json().get("id", "")

    with ThreadPoolExecutor(10) as pool:
        answers = set(pool.map(create, range(10)))
    assert len(answers) == 1
    assert answers.pop()[0] == 201
    listed = platform.client.get("/api/v1/tokens", headers=admin).json()["items"]
    assert len(listed) == 1


def test_a_secret_that_is_shown_once_is_not_stored_for_the_retry(platform: Platform) -> None:
    operator = {**platform.caller(Role.operator), "Idempotency-Key": "k-1"}
    body = {"name": "t", "scopes": ["devices:read"]}
    first = platform.client.post("/api/v1/tokens", json=body, headers=operator).json()
    again = platform.client.post("/api/v1/tokens", json=body, headers=operator).json()
    assert first["token"].startswith("tgp_")
    assert again == {**first, "token": None}


def test_a_create_that_failed_may_be_sent_again(sqlite_platform: Platform) -> None:
    admin = {**sqlite_platform.caller(Role.admin), "Idempotency-Key": "k-1"}
    weak = {**NEW, "password": "short"}
    assert sqlite_platform.client.post("/api/v1/users", json=weak, headers=admin).status_code == 422
    assert sqlite_platform.client.post("/api/v1/users", json=NEW, headers=admin).status_code == 201


def test_a_key_is_forgotten_after_a_day(platform: Platform) -> None:
    user = platform.user(platform.tenant(), Role.admin)
    body = {"name": "t", "scopes": ["devices:read"]}
    ids = set()
    for _ in range(2):
        headers = {**platform.sign_in(user), "Idempotency-Key": "k-1"}
        ids.add(platform.client.post("/api/v1/tokens", json=body, headers=headers).json()["id"])
        platform.clock.advance(hours=24)
    assert len(ids) == 2


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "a\tb", "ключ".encode()])
def test_an_odd_key_is_refused(sqlite_platform: Platform, key: str | bytes) -> None:
    admin = {**sqlite_platform.caller(Role.admin), "Idempotency-Key": key}
    answer = sqlite_platform.client.post("/api/v1/users", json=NEW, headers=admin)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_idempotency_key")
