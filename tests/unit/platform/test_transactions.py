"""One request is one transaction: what did not commit was not answered with success."""

from __future__ import annotations

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from support.platform import PASSWORD, Platform
from tensorguard.platform.principal import Role

NEW = {"username": "grace", "password": PASSWORD, "role": "viewer"}


@pytest.mark.invariant("TG-I09")
def test_a_commit_that_fails_is_never_answered_with_success(platform: Platform) -> None:
    admin = platform.caller(Role.admin)

    def fail(_: Session) -> None:
        raise RuntimeError("the disk is full")

    event.listen(platform.state.sessions, "before_commit", fail)
    try:
        answer = platform.client.post("/api/v1/users", json=NEW, headers=admin)
    finally:
        event.remove(platform.state.sessions, "before_commit", fail)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "disk" not in answer.text
    names = [
        u["username"] for u in platform.client.get("/api/v1/users", headers=admin).json()["items"]
    ]
    assert "grace" not in names


def test_a_refused_sign_in_commits_its_counters(platform: Platform) -> None:
    from tensorguard.platform.db.tables.people import UserAccount

    user = platform.user(platform.tenant(), Role.viewer, "ada")
    assert platform.login("ada", "not the password at all").status_code == 401
    with platform.session() as session:
        assert session.get_one(UserAccount, user).failed_logins == 1
