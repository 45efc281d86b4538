"""The audit trail over HTTP, its signed heads, and the task that signs them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from sqlalchemy import text

from support.platform import Platform
from tensorguard.errors import TensorGuardError
from tensorguard.platform.audit.chain import Event, Head, verify
from tensorguard.platform.audit.periodic import periodic_heads, sign_moved
from tensorguard.platform.audit.repository import AuditRepository, event_of
from tensorguard.platform.audit.service import open_head, trust_of
from tensorguard.platform.principal import Role


def heads_of(platform: Platform, tenant_id: str) -> list[int]:
    with platform.session() as session:
        trail = AuditRepository(session, tenant_id=tenant_id)
        return [row.seq for row in trail.page_of_heads(after=0, limit=100)]


def test_the_trail_is_read_page_by_page_and_event_by_event(platform: Platform) -> None:
    reader = platform.caller(Role.security)
    for _ in range(4):
        platform.caller(Role.viewer)
    seqs, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = platform.client.get("/api/v1/audit", params=query, headers=reader).json()
        seqs += [event["seq"] for event in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seqs == list(range(1, 7))
    one = platform.client.get("/api/v1/audit/1", headers=reader).json()
    assert (one["action"], one["previous"]) == ("tenant.created", "0" * 64)
    assert platform.client.get("/api/v1/audit/7", headers=reader).status_code == 404


@pytest.mark.parametrize("seq", ["0", "-1", "x", str(2**63), "1.5"])
def test_an_odd_number_is_a_4xx(sqlite_platform: Platform, seq: str) -> None:
    reader = sqlite_platform.caller(Role.security)
    answer = sqlite_platform.client.get(f"/api/v1/audit/{seq}", headers=reader)
    assert answer.status_code == 422


def test_what_is_read_hashes_to_what_is_stored(platform: Platform) -> None:
    reader = {**platform.caller(Role.security), "X-Request-Id": "mine-1"}
    platform.client.post("/api/v1/audit/heads", headers=reader)
    events = platform.client.get("/api/v1/audit", headers=reader).json()["items"]
    assert events[-1]["request_id"] == "mine-1"
    tenant_id = platform.tenant()
    with platform.session() as session:
        rows = AuditRepository(session, tenant_id=tenant_id).page(after=0, limit=100)
        assert [event_of(row).digest() for row in rows] == [event["hash"] for event in events]


def test_a_head_is_signed_on_request_and_covers_the_request(platform: Platform) -> None:
    officer = platform.caller(Role.security)
    made = platform.client.post("/api/v1/audit/heads", headers=officer)
    assert made.status_code == 201, made.text
    last = platform.client.get(f"/api/v1/audit/{made.json()['seq']}", headers=officer).json()
    assert last["action"] == "audit.head_requested"
    head = open_head(made.json()["envelope"].encode(), trust_of(platform.state.keys))
    assert (head.seq, head.hash) == (last["seq"], last["hash"])
    listed = platform.client.get("/api/v1/audit/heads", headers=officer).json()["items"]
    assert [row["seq"] for row in listed] == [head.seq]


@pytest.mark.parametrize("role", [Role.viewer, Role.operator, Role.engineer])
def test_only_who_may_reads_and_signs(sqlite_platform: Platform, role: Role) -> None:
    caller = sqlite_platform.caller(role)
    for method, place in (
        ("GET", "/api/v1/audit"),
        ("GET", "/api/v1/audit/1"),
        ("GET", "/api/v1/audit/heads"),
        ("POST", "/api/v1/audit/heads"),
    ):
        answer = sqlite_platform.client.request(method, place, headers=caller)
        assert answer.status_code == 403


@pytest.mark.invariant("TG-I08")
def test_another_tenants_events_are_not_there(platform: Platform) -> None:
    for _ in range(3):
        platform.caller(Role.viewer, "globex")
    reader = platform.caller(Role.security, "acme")
    assert platform.client.get("/api/v1/audit/4", headers=reader).status_code == 404
    assert "globex" not in platform.client.get("/api/v1/audit", headers=reader).text


def test_the_task_signs_what_moved_and_appends_nothing(platform: Platform) -> None:
    acme, globex = platform.tenant("acme"), platform.tenant("globex")
    assert sign_moved(platform.state) == 2
    assert sign_moved(platform.state) == 0  # signing moved no chain: there is no end to chase
    platform.user(acme, Role.viewer)
    platform.sign_in(platform.user(acme, Role.operator))
    assert sign_moved(platform.state) == 1
    assert heads_of(platform, acme) == [1, 2]
    assert heads_of(platform, globex) == [1]


def test_a_broken_trail_does_not_stop_the_others(platform: Platform) -> None:
    acme, globex = platform.tenant("acme"), platform.tenant("globex")
    with platform.session() as session:
        session.execute(
            text("UPDATE audit_event SET actor = 'x' WHERE tenant_id = :t"), {"t": acme}
        )
    assert sign_moved(platform.state) == 1
    assert heads_of(platform, acme) == []
    assert heads_of(platform, globex) == [1]


def test_the_task_runs_at_its_interval_and_ends_with_the_app(sqlite_platform: Platform) -> None:
    tenant = sqlite_platform.tenant()
    settings = replace(sqlite_platform.settings, audit_head_seconds=0)
    state = replace(sqlite_platform.state, settings=settings)

    async def run() -> None:
        async with periodic_heads(state):
            for _ in range(200):
                if heads_of(sqlite_platform, tenant):
                    return
                await asyncio.sleep(0.02)

    asyncio.run(run())
    assert heads_of(sqlite_platform, tenant) == [1]


def test_a_failed_request_leaves_no_event(platform: Platform) -> None:
    admin = platform.caller(Role.admin)
    before = platform.client.get("/api/v1/audit", headers=admin).json()["items"]
    body = {"username": "grace", "password": "short", "role": "viewer"}
    assert platform.client.post("/api/v1/users", json=body, headers=admin).status_code == 422
    assert platform.client.get("/api/v1/audit", headers=admin).json()["items"] == before


def event(seq: int, previous: str, **changes: object) -> Event:
    fields = {
        "tenant_id": "t",
        "seq": seq,
        "time": "2030-01-01T00:00:00+00:00",
        "actor": "user:ada",
        "action": "a",
        "subject": "s",
        "details": {"n": seq},
        "request_id": "-",
        "previous": previous,
    }
    return Event(**{**fields, **changes})


FIELDS = ["tenant_id", "seq", "time", "actor", "action", "subject", "details", "request_id"]


@pytest.mark.parametrize("field", [*FIELDS, "previous"])
def test_the_digest_covers_every_field(field: str) -> None:
    one = event(1, "0" * 64)
    other = {"seq": 2, "details": {"n": "1"}}.get(field, "x")
    assert replace(one, **{field: other}).digest() != one.digest()


def test_an_empty_trail_reaches_no_head() -> None:
    assert verify([], [], tenant_id="t").seq == 0
    with pytest.raises(TensorGuardError, match="event 1 was signed"):
        verify([], [Head("t", 1, "a" * 64, "-")], tenant_id="t")


def test_two_heads_of_one_event_must_agree() -> None:
    one = event(1, "0" * 64)
    entries = [(one, one.digest())]
    good, bad = Head("t", 1, one.digest(), "-"), Head("t", 1, "a" * 64, "-")
    assert verify(entries, [good, good], tenant_id="t").seq == 1
    with pytest.raises(TensorGuardError, match="not the one that was signed"):
        verify(entries, [good, bad], tenant_id="t")


def test_details_are_bounded(sqlite_platform: Platform) -> None:
    tenant_id = sqlite_platform.tenant()
    with (
        pytest.raises(TensorGuardError, match="at most"),
        sqlite_platform.session() as session,
    ):
        AuditRepository(session, tenant_id=tenant_id).append(
            actor="a",
            action="b",
            subject="c",
            now=sqlite_platform.clock(),
            details={"long": "x" * 20_000},
        )
    reader = sqlite_platform.caller(Role.security)
    assert (
        len(json.dumps(sqlite_platform.client.get("/api/v1/audit", headers=reader).json())) < 9000
    )
