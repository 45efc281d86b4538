"""Signing in and out."""

from __future__ import annotations

from support.platform import PASSWORD, Platform
from tensorguard.platform.principal import Role


def test_a_person_signs_in_is_known_and_signs_out(platform: Platform) -> None:
    platform.user(platform.tenant(), Role.operator, "ada")
    answer = platform.login("ada")
    assert answer.status_code == 200, answer.text
    headers = {"Authorization": f"Bearer {answer.json()['token']}"}
    me = platform.client.get("/api/v1/auth/me", headers=headers).json()
    assert me["name"] == "ada"
    platform.client.cookies.clear()
    assert platform.client.post("/api/v1/auth/logout", headers=headers).status_code == 204
    assert platform.client.get("/api/v1/auth/me", headers=headers).status_code == 401


def test_the_name_is_not_case_sensitive(sqlite_platform: Platform) -> None:
    sqlite_platform.user(sqlite_platform.tenant(), Role.viewer, "ada")
    assert sqlite_platform.login("ADA", PASSWORD).status_code == 200
