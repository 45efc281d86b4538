"""Our JSON in: stored once, answered after the commit, the bad ones named."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from support.platform import Platform
from support.telemetry import NOTHING, SECOND, at, device, samples, send, stored

ACCEPTED_3 = {"accepted": 3, "duplicates": 0, "rejected": [], "rejected_total": 0}


def test_a_batch_is_stored_and_counted(platform: Platform) -> None:
    answer = send(platform, device(platform), {"samples": samples(at(platform.clock()))})
    assert answer.status_code == 200, answer.text
    assert answer.json() == ACCEPTED_3
    assert stored(platform) == {"series": 1, "sample": 3, "latest": 1, "batch": 1}
    exposition = platform.client.get("/metrics").text
    assert 'tensorguard_telemetry_samples_total{outcome="accepted"} 3.0' in exposition


@pytest.mark.parametrize("named", ["header", "batch_id", "body"])
def test_the_same_batch_again_gets_the_same_answer_and_is_stored_once(
    platform: Platform, named: str
) -> None:
    headers = device(platform)
    body = {"samples": [*samples(at(platform.clock())), {"name": "", "value": 1, "ts": 1}]}
    if named == "batch_id":
        body["batch_id"] = "b-1"
    more = {"idempotency_key": "k-1"} if named == "header" else {}
    first = send(platform, headers, body, **more)
    again = send(platform, headers, body, **more)
    assert first.json() == again.json()
    assert first.json()["rejected"] == [{"index": 3, "reason": "the name is empty"}]
    assert stored(platform) == {"series": 1, "sample": 3, "latest": 1, "batch": 1}


def test_a_key_with_another_batch_is_refused(platform: Platform) -> None:
    headers, now = device(platform), at(platform.clock())
    send(platform, headers, {"samples": samples(now)}, idempotency_key="k")
    other = send(platform, headers, {"samples": samples(now, 4)}, idempotency_key="k")
    assert other.status_code == 422
    assert other.json()["code"] == "idempotency_key_reused"
    assert stored(platform)["sample"] == 3


def test_a_key_belongs_to_its_sender(platform: Platform) -> None:
    body = {"samples": samples(at(platform.clock()))}
    one = send(platform, device(platform, "arm-1"), body, idempotency_key="k")
    two = send(platform, device(platform, "arm-2"), body, idempotency_key="k")
    assert one.json() == two.json() == ACCEPTED_3
    assert stored(platform) == {"series": 2, "sample": 6, "latest": 2, "batch": 2}


@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb"])
def test_a_bad_key_is_refused(sqlite_platform: Platform, key: str) -> None:
    body = {"samples": samples(at(sqlite_platform.clock())), "batch_id": key}
    assert send(sqlite_platform, device(sqlite_platform), body).status_code == 400
    assert stored(sqlite_platform) == NOTHING


@pytest.mark.parametrize("same", [True, False], ids=["one batch", "overlapping batches"])
@pytest.mark.invariant("TG-I10")
def test_ten_at_once_are_stored_once(platform: Platform, same: bool) -> None:
    headers, now = device(platform), at(platform.clock())

    def one(number: int) -> dict:
        more = {} if same else {"idempotency_key": f"k-{number}"}
        rows = [sample for joint in "012345" for sample in samples(now, 20, joint=joint)]
        rows = rows if same or number % 2 else rows[::-1]
        answer = send(platform, headers, {"samples": rows}, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(one, range(10)))
    accepted = [answer["accepted"] for answer in answers]
    assert sum(accepted) == (1200 if same else 120)
    assert all(answer["accepted"] + answer["duplicates"] == 120 for answer in answers)
    assert stored(platform) == {
        "series": 6,
        "sample": 120,
        "latest": 6,
        "batch": 1 if same else 10,
    }


def test_of_two_values_for_one_time_the_first_wins(platform: Platform) -> None:
    headers, now = device(platform), at(platform.clock())
    twice = [{"name": "a", "value": 1, "ts": now}, {"name": "a", "value": 2, "ts": now}]
    assert send(platform, headers, {"samples": twice}).json()["duplicates"] == 1
    again = {"samples": [{"name": "a", "value": 3, "ts": now}, *samples(now, 1)]}
    answer = send(platform, headers, again).json()
    assert (answer["accepted"], answer["duplicates"]) == (1, 1)
    with platform.session() as session:
        assert session.execute(
            text("SELECT value FROM sample WHERE ts = :t"), {"t": now}
        ).all() == [(1.0,)]
        assert session.execute(
            text("SELECT value FROM latest WHERE ts = :t"), {"t": now}
        ).all() == [(1.0,)]


def test_bad_samples_are_named_and_their_neighbours_stored(platform: Platform) -> None:
    now = at(platform.clock())
    good = samples(now, 497)
    bad = [
        {"name": "a", "value": 1, "ts": now + 301 * SECOND},
        {"name": "a", "value": 1, "ts": now - 31 * 86_400 * SECOND},
        {"name": "a", "value": [1], "ts": now},
    ]
    answer = send(platform, device(platform), {"samples": [*good, *bad]}).json()
    assert answer["accepted"] == 497
    assert answer["rejected_total"] == 3
    assert [(r["index"], r["reason"]) for r in answer["rejected"]] == [
        (497, "its time is more than 5 minutes in the future"),
        (498, "its time is older than what is kept"),
        (499, "it is not a sample: Expected `bool | float | str`, got `array` - at `$.value`"),
    ]
    assert stored(platform)["sample"] == 497
    assert stored(platform)["series"] == 1  # the refused ones made none


REFUSED = [
    ({"name": "n" * 256}, "the name is longer than 255 characters"),
    ({"name": "a\nb"}, "the name holds a control character"),
    ({"unit": "u" * 64}, "the unit is longer than 63 characters"),
    ({"labels": {"": "v"}}, "a label's name is empty"),
    ({"labels": {"k" * 129: "v"}}, "a label's name is longer than 128 characters"),
    ({"labels": {"k": "v" * 1025}}, "a label's value is longer than 1024 characters"),
    ({"labels": {"k": "a\0b"}}, "a label's value holds a NUL character"),
    ({"labels": {f"k{i}": "v" for i in range(65)}}, "it has more than 64 labels"),
    (
        {"labels": {f"k{i}": "v" * 1000 for i in range(17)}},
        "its labels have more than 16384 bytes together",
    ),
    (
        {"labels": {"device": "arm-2"}},
        "the label `device` names another device than the one that sent it",
    ),
    ({"ts": "yesterday"}, "the time is neither nanoseconds nor RFC 3339 text with a zone"),
    ({"ts": "2030-02-30T00:00:00Z"}, "there is no such time"),
    ({"ts": 2**64}, "the time does not fit in 64 bits of nanoseconds"),
    ({"ts": 2**63 - 1}, "its time is more than 5 minutes in the future"),
    ({"ts": -(2**63)}, "its time is older than what is kept"),
    ({"color": "red"}, "it is not a sample: Object contains unknown field `color`"),
]


def test_what_is_refused_is_named(platform: Platform) -> None:
    now = at(platform.clock())
    bad = [{"name": "a", "value": 1, "ts": now, **change} for change, _ in REFUSED]
    answer = send(platform, device(platform), {"samples": [*bad, *samples(now, 1)]})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "accepted": 1,
        "duplicates": 0,
        "rejected": [{"index": i, "reason": reason} for i, (_, reason) in enumerate(REFUSED)],
        "rejected_total": len(REFUSED),
    }


def test_at_most_a_thousand_rejections_are_listed_and_all_counted(
    sqlite_platform: Platform,
) -> None:
    body = {"samples": [{"name": "a", "value": 1, "ts": 1}] * 1500}
    answer = send(sqlite_platform, device(sqlite_platform), body).json()
    assert answer["rejected_total"] == 1500
    assert len(answer["rejected"]) == 1000


def test_times_may_be_text(platform: Platform) -> None:
    rows = [
        {"name": "a", "value": 1, "ts": "2030-01-01T12:00:00.123456789Z"},
        {"name": "a", "value": 2, "ts": "2030-01-01T13:00:00+01:00"},
        {"name": "a", "value": 3, "ts": str(at(platform.clock(), 1))},
    ]
    assert send(platform, device(platform), {"samples": rows}).json()["accepted"] == 3
    with platform.session() as session:
        found = session.execute(text("SELECT ts FROM sample ORDER BY ts")).scalars().all()
    base = at(platform.clock())
    assert found == [base, base + 123_456_789, base + SECOND]


def test_what_a_device_writes_bears_its_name(platform: Platform) -> None:
    send(platform, device(platform, "arm-9"), {"samples": samples(at(platform.clock()))})
    with platform.session() as session:
        device_id, labels = session.execute(text("SELECT device_id, labels FROM series")).one()
    assert device_id == "arm-9"
    labels = json.loads(labels) if isinstance(labels, str) else labels
    assert labels == {"device": "arm-9"}


@pytest.mark.invariant("TG-I09")
def test_a_failed_commit_is_not_acknowledged_and_a_retry_stores_all(platform: Platform) -> None:
    headers, body = device(platform), {"samples": samples(at(platform.clock()))}
    engine = platform.state.engine

    failing = [True]

    def fail(connection: object) -> None:
        if not failing:
            return
        failing.clear()
        if engine.dialect.name == "sqlite":
            raise OperationalError("COMMIT", None, OSError("disk full"))
        pid = connection.connection.driver_connection.info.backend_pid
        with engine.connect() as other:  # it ends without a commit of its own
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    send(platform, headers, {"samples": samples(at(platform.clock()), name="other")})
    before = stored(platform)
    event.listen(engine, "commit", fail)  # the first commit from here on fails
    failed = send(platform, headers, body)
    assert failed.status_code == 503, failed.text
    assert failed.headers["retry-after"] == "5"
    assert stored(platform) == before
    assert send(platform, headers, body).json() == ACCEPTED_3
    assert stored(platform)["sample"] == before["sample"] + 3


def test_samples_of_many_days_make_their_partitions(platform: Platform) -> None:
    now = at(platform.clock())
    rows = [{"name": "a", "value": 1, "ts": now - day * 86_400 * SECOND} for day in range(30)]
    assert send(platform, device(platform), {"samples": rows}).json()["accepted"] == 30
    if platform.state.engine.dialect.name == "postgresql":
        with platform.session() as session:
            names = session.execute(
                text("SELECT relname FROM pg_class WHERE relname ~ '^sample_p[0-9]+$' ORDER BY 1")
            )
            found = names.scalars().all()
        assert len(found) == 30
        assert found[-1] == "sample_p20300101"


def test_latest_only_moves_forward(platform: Platform) -> None:
    headers, now = device(platform), at(platform.clock())
    for value, ts in ((1, now), (2, now - SECOND), (3, now + SECOND)):
        send(platform, headers, {"samples": [{"name": "a", "value": value, "ts": ts}]})
    with platform.session() as session:
        assert session.execute(text("SELECT ts, value FROM latest")).all() == [(now + SECOND, 3.0)]


def test_only_who_may_write_telemetry_writes_it(sqlite_platform: Platform) -> None:
    body = {"samples": samples(at(sqlite_platform.clock()))}
    assert send(sqlite_platform, {}, body).status_code == 401
    assert send(sqlite_platform, {"Authorization": "Bearer no"}, body).status_code == 401
    assert send(sqlite_platform, sqlite_platform.caller(), body).status_code == 403
    assert stored(sqlite_platform) == NOTHING
