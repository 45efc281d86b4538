"""Signing in and out, by bearer token and by cookie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from support.platform import PASSWORD, Clock, Platform, running, settings_for
from tensorguard.platform.principal import Role


def test_a_person_signs_in_is_known_and_signs_out(platform: Platform) -> None:
    platform.user(platform.tenant(), Role.operator, "ada")
    answer = platform.login("ada")
    assert answer.status_code == 200, answer.text
    assert answer.json()["user"]["username"] == "ada"
    platform.client.cookies.clear()
    headers = {"Authorization": f"Bearer {answer.json()['token']}"}
    me = platform.client.get("/api/v1/auth/me", headers=headers).json()
    assert (me["name"], me["kind"]) == ("ada", "user")
    assert "devices:write" in me["scopes"]
    assert "users:write" not in me["scopes"]
    assert platform.client.post("/api/v1/auth/logout", headers=headers).status_code == 204
    assert platform.client.get("/api/v1/auth/me", headers=headers).status_code == 401


def test_the_name_is_not_case_sensitive(sqlite_platform: Platform) -> None:
    sqlite_platform.user(sqlite_platform.tenant(), Role.viewer, "ada")
    assert sqlite_platform.login("ADA", PASSWORD).status_code == 200


def test_the_cookie_reads_and_with_its_csrf_token_writes(sqlite_platform: Platform) -> None:
    sqlite_platform.user(sqlite_platform.tenant(), Role.operator, "ada")
    answer = sqlite_platform.login("ada")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("tg_session=tgs_")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert sqlite_platform.client.get("/api/v1/auth/me").status_code == 200
    csrf = {"X-CSRF-Token": answer.json()["csrf_token"]}
    assert sqlite_platform.client.post("/api/v1/auth/logout", headers=csrf).status_code == 204
    assert sqlite_platform.client.get("/api/v1/auth/me").status_code == 401


def test_behind_tls_the_cookie_is_bound_to_the_host(sqlite_url: str, tmp_path: Path) -> None:
    settings = replace(settings_for(sqlite_url, tmp_path / "home"), behind_tls_proxy=True)
    assert settings.database_url == SecretStr(sqlite_url)
    with running(settings, Clock()) as platform:
        platform.user(platform.tenant(), Role.viewer, "ada")
        cookie = platform.login("ada").headers["set-cookie"]
    assert cookie.startswith("__Host-tg_session=")
    assert "; Secure" in cookie
    assert "; Path=/" in cookie
    assert "Domain" not in cookie


def test_a_session_ends_when_idle_and_at_last(sqlite_platform: Platform) -> None:
    headers = sqlite_platform.caller(Role.viewer)
    for _ in range(9):
        sqlite_platform.clock.advance(minutes=50)
        assert sqlite_platform.client.get("/api/v1/auth/me", headers=headers).status_code == 200
    sqlite_platform.clock.advance(minutes=50)
    assert sqlite_platform.client.get("/api/v1/auth/me", headers=headers).status_code == 401
    idle = sqlite_platform.caller(Role.viewer)
    sqlite_platform.clock.advance(minutes=60)
    assert sqlite_platform.client.get("/api/v1/auth/me", headers=idle).status_code == 401


def test_no_row_holds_a_token(platform: Platform) -> None:
    from sqlalchemy import select

    from tensorguard.platform.db.tables.people import UserSession

    token = platform.caller(Role.viewer)["Authorization"].removeprefix("Bearer ")
    with platform.session() as session:
        row = session.scalars(select(UserSession)).one()
        assert token not in str(vars(row))
        assert row.token_hash == platform.state.secrets.pepper(token)
