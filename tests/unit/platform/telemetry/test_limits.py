"""Quotas, policies, retention, and what the queue admits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import event, select, text

from support.platform import Clock, Platform, running, settings_for
from support.telemetry import SECOND, at, device, samples, send, stored
from tensorguard.errors import Throttled, Unauthenticated
from tensorguard.platform.db.tables.people import ApiToken
from tensorguard.platform.db.tables.telemetry import SampleRow, Series
from tensorguard.platform.principal import Role
from tensorguard.platform.telemetry import readers
from tensorguard.platform.telemetry.background import sweep
from tensorguard.platform.telemetry.group import Batch, BatchKey, Sender
from tensorguard.platform.telemetry.intake import Admission, IntakeFull
from tensorguard.platform.telemetry.quotas import Quotas, QuotaUsed
from tensorguard.wire.telemetry import Answer

DAY = 86_400 * SECOND
POLICY = "/api/v1/telemetry/policy"


class Ticking:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_holds_ten_seconds_and_fills_again() -> None:
    clock = Ticking()
    quotas = Quotas(device_rate=100, tenant_rate=10_000, smallest=500, clock=clock)
    quotas.take("acme", "arm-1", 1000)
    with pytest.raises(QuotaUsed, match="this device may send 100") as refused:
        quotas.take("acme", "arm-1", 300)
    assert refused.value.retry_after == 3
    assert isinstance(refused.value, Throttled)
    quotas.take("acme", "arm-2", 1000)  # another device has its own
    clock.now += 3
    quotas.take("acme", "arm-1", 300)


def test_a_tenant_is_bounded_over_all_its_devices_and_no_other_tenant_pays() -> None:
    quotas = Quotas(device_rate=1000, tenant_rate=100, smallest=10, clock=Ticking())
    for number in range(10):
        quotas.take("acme", f"arm-{number}", 100)
    with pytest.raises(QuotaUsed, match="this tenant"):
        quotas.take("acme", "arm-11", 1)
    quotas.take("other", None, 1000)


def test_a_batch_that_is_allowed_at_all_is_never_refused_for_ever() -> None:
    quotas = Quotas(device_rate=1, tenant_rate=1, smallest=100_000, clock=Ticking())
    quotas.take("acme", "arm-1", 100_000)


def test_admission_is_bounded_in_bytes_and_requests() -> None:
    admission = Admission(max_bytes=100, max_requests=2)
    with admission.admit(60) as first:
        with pytest.raises(IntakeFull, match="bytes"), admission.admit(50):
            pass
        with admission.admit(40), pytest.raises(IntakeFull, match="batches"), admission.admit(0):
            pass
        first.grow(40)
        with pytest.raises(IntakeFull):
            first.grow(1)
    assert (admission.bytes, admission.requests) == (0, 0)
    with admission.admit(1000):  # one alone always finds room
        pass


@pytest.fixture
def small(sqlite_url: str, tmp_path: Path, clock: Clock) -> Iterator[Platform]:
    settings = settings_for(sqlite_url, tmp_path / "home")
    with running(settings, clock, max_device_rate=1, max_batch_points=20) as started:
        yield started


def test_a_device_over_its_quota_gets_429_and_nothing_is_stored(small: Platform) -> None:
    headers, now = device(small), at(small.clock())
    assert send(small, headers, {"samples": samples(now, 20)}).status_code == 200
    refused = send(small, headers, {"samples": samples(now - 60 * SECOND, 5)})
    assert refused.status_code == 429
    assert refused.json()["code"] == "telemetry_quota"
    assert int(refused.headers["retry-after"]) >= 1
    assert stored(small)["sample"] == 20
    admin = small.caller(Role.admin)
    changed = small.client.put(POLICY, headers=admin, json={"device_rate": 1000})
    assert changed.json()["own"]["device_rate"] == 1000
    again = device(small, "arm-2")
    for turn in range(5):
        rows = samples(now - turn * 60 * SECOND, 20)
        assert send(small, again, {"samples": rows}).status_code == 200


@pytest.mark.invariant("TG-I41")
def test_a_tenants_samples_end_with_its_retention_and_no_others(platform: Platform) -> None:
    now = at(platform.clock())
    ages = (0, 3, 9, 20, 29)
    rows = [{"name": "a", "value": 1, "ts": now - age * DAY} for age in ages]
    for tenant in ("acme", "other"):
        send(platform, device(platform, "arm-1", tenant), {"samples": rows})
    admin = platform.caller(Role.admin)
    assert platform.client.put(POLICY, headers=admin, json={"retention_days": 7}).status_code == 200
    refused = send(platform, device(platform), {"samples": rows[2:3], "batch_id": "late"}).json()
    assert refused["rejected"][0]["reason"] == "its time is older than what is kept"
    assert sweep(platform.state).samples == 3
    assert stored(platform)["sample"] == 7
    other = platform.caller(Role.admin, tenant="other")
    platform.client.put(POLICY, headers=other, json={"retention_days": 15})
    swept = sweep(platform.state)
    assert stored(platform)["sample"] == 5
    if platform.state.engine.dialect.name == "postgresql":
        assert swept.partitions == ("sample_p20291203", "sample_p20291212")
    again = send(platform, device(platform, "arm-1", "other"), {"samples": rows[:3]})
    assert again.status_code == 200


def test_stored_batches_and_letters_are_forgotten_in_time(platform: Platform) -> None:
    now = at(platform.clock())
    send(
        platform, device(platform), {"samples": [*samples(now), {"name": "", "value": 1, "ts": 1}]}
    )
    sweep(platform.state)
    assert stored(platform)["batch"] == 1
    platform.clock.advance(days=32)
    swept = sweep(platform.state)
    assert (swept.batches, swept.letters) == (1, 0)
    platform.clock.advance(days=400)
    assert sweep(platform.state).letters == 1
    assert stored(platform)["latest"] == 0


def test_only_an_administrator_changes_a_policy(sqlite_platform: Platform) -> None:
    for role in (Role.viewer, Role.operator, Role.engineer, Role.security):
        headers = sqlite_platform.caller(role)
        assert sqlite_platform.client.get(POLICY, headers=headers).status_code == 200
        answer = sqlite_platform.client.put(POLICY, headers=headers, json={"retention_days": 1})
        assert answer.status_code == 403
    admin = sqlite_platform.caller(Role.admin)
    bad = sqlite_platform.client.put(POLICY, headers=admin, json={"retention_days": 0})
    assert bad.status_code == 422


@pytest.mark.invariant("TG-I42")
def test_a_revoked_token_stores_nothing_though_it_was_verified_before(platform: Platform) -> None:
    headers, now = device(platform), at(platform.clock())
    assert send(platform, headers, {"samples": samples(now)}).status_code == 200
    with platform.session() as session:
        session.execute(text("UPDATE api_token SET revoked = created"))
    assert send(platform, headers, {"samples": samples(now, 9)}).status_code == 401
    assert stored(platform)["sample"] == 3


@pytest.mark.invariant("TG-I42")
def test_a_revoked_token_makes_its_neighbours_begin_anew_once_only(platform: Platform) -> None:
    good, bad = device(platform), device(platform, "arm-2")
    now, intake = at(platform.clock()), platform.state.telemetry.intake
    for headers in (good, bad):
        assert send(platform, headers, {"samples": samples(now)}).status_code == 200
    with platform.session() as session:
        session.execute(text("UPDATE api_token SET revoked = created WHERE device_id = 'arm-2'"))
    begun, batches = [], [batch_of(platform, name, now) for name in ("arm-1", "arm-2")]

    def count(connection: object) -> None:
        begun.append(connection)

    event.listen(platform.state.engine, "begin", count)
    outcomes = intake.write(batches)
    event.remove(platform.state.engine, "begin", count)
    assert isinstance(outcomes[0], Answer)
    assert outcomes[0].accepted == 1
    assert isinstance(outcomes[1], Unauthenticated)
    assert len(begun) == 2
    with platform.session() as session:
        devices = select(Series.device_id).join(SampleRow, SampleRow.series_id == Series.id)
        written = session.scalars(devices.where(Series.name == "late")).all()
    assert written == ["arm-1"]
    for _ in range(2):  # the first answer makes this process forget it, so it is looked up again
        assert send(platform, bad, {"samples": samples(now, 9)}).status_code == 401
    assert (
        platform.state.telemetry.credentials.find(
            bad["Authorization"], now=platform.clock(), kid=lambda: ""
        )
        is None
    )


def batch_of(platform: Platform, name: str, now: int) -> Batch:
    """Return a batch of one sample, as a token of this device sent it."""
    with platform.session() as session:
        token = session.scalars(select(ApiToken).where(ApiToken.device_id == name)).one()
    parts, moment = platform.state.telemetry, platform.clock()
    body = msgspec.json.encode({"samples": samples(now, 1, name="late")})
    points, _ = readers.read(
        readers.OUR_JSON, body, parts.rules(moment, token.tenant_id, name), parts.series
    )
    sender = Sender(token.tenant_id, f"token:{token.id}", name, token.id)
    return Batch(sender, BatchKey.of(body, None), points, readers.OUR_MEDIA, body, moment)
