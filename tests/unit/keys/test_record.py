"""The record of a key moves forward only, and is read strictly."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorguard.errors import MalformedInput
from tensorguard.keys import record as records
from tensorguard.keys.provider import (
    Algorithm,
    BadTransition,
    Conflict,
    KeyDestroyed,
    KeyNotFound,
    KeyState,
    Purpose,
    key_id,
)
from tensorguard.keys.record import MAX_VERSIONS, Record

NOW = datetime(2026, 5, 1, tzinfo=UTC)
KEY = key_id("key")
ORDER = list(KeyState)


def fresh() -> Record:
    return records.first(KEY, Algorithm.ed25519, Purpose.pack_signing, b"p" * 32, NOW)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["stage", "promote", "rotate", "retire", "doom", "spare", "sweep", "off", "on"]
        ),
        st.integers(1, 5),
        st.integers(0, 10),
    ),
    max_size=40,
)


def step(record: Record, name: str, number: int, now: datetime) -> Record:
    return {
        "stage": lambda: record.staged(b"s" * 32, now),
        "promote": record.promoted,
        "rotate": lambda: record.rotated(b"r" * 32, now),
        "retire": lambda: record.retired(number),
        "doom": lambda: record.doomed(number, now + timedelta(days=3)),
        "spare": lambda: record.spared(number, now),
        "sweep": lambda: record.swept(now),
        "off": lambda: record.switched(disabled=True),
        "on": lambda: record.switched(disabled=False),
    }[name]()


@given(STEPS)
def test_no_sequence_of_changes_moves_a_version_back(
    steps: list[tuple[str, int, int]],
) -> None:
    record, now = fresh(), NOW
    for name, number, days in steps:
        now += timedelta(days=days)
        try:
            after = step(record, name, number, now)
        except (Conflict, KeyNotFound):
            continue
        before = {v.number: v.state for v in record.versions}
        for version in after.versions:
            was = before.get(version.number)
            assert was is None or ORDER.index(version.state) >= ORDER.index(was)
            assert version.state is not KeyState.destroyed or version.public == b""
        assert before.keys() <= {v.number for v in after.versions}
        states = [v.state for v in after.versions]
        assert states.count(KeyState.active) <= 1
        assert states.count(KeyState.pending) <= 1
        assert after is record or after.generation > record.generation
        assert Record.decode(after.encode(), KEY) == after
        record = after


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("key_id", "other"),
        ("key_id", "../x"),
        ("algorithm", "none"),
        ("purpose", "fun"),
        ("format", "tensorguard-key-9"),
        ("generation", "1"),
        ("generation", True),
        ("disabled", 0),
        ("versions", []),
        ("versions", None),
        ("versions", [{}]),
        ("extra", 1),
    ],
)
def test_a_record_with_a_wrong_member_is_refused(member: str, value: object) -> None:
    content = {**fresh().to_json(), member: value}
    with pytest.raises(MalformedInput):
        Record.from_json(content, KEY)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("version", 0),
        ("version", -1),
        ("version", 2**31),
        ("version", "1"),
        ("state", "alive"),
        ("created", "yesterday"),
        ("created", "2026-05-01T00:00:00"),
        ("destroy_at", "x"),
        ("public", "!"),
        ("extra", 1),
    ],
)
def test_a_version_with_a_wrong_member_is_refused(member: str, value: object) -> None:
    content = json.loads(fresh().encode())
    content["versions"][0][member] = value
    with pytest.raises(MalformedInput):
        Record.from_json(content, KEY)


def test_versions_out_of_order_or_twice_are_refused() -> None:
    content = json.loads(fresh().rotated(b"r" * 32, NOW).encode())
    first, second = content["versions"]
    for versions in ([second, first], [first, first]):
        with pytest.raises(MalformedInput):
            Record.from_json({**content, "versions": versions}, KEY)


def test_the_number_of_versions_is_bounded() -> None:
    record = fresh()
    for _ in range(MAX_VERSIONS - 1):
        record = record.rotated(b"r" * 32, NOW)
    with pytest.raises(BadTransition):
        record.rotated(b"r" * 32, NOW)


def test_a_version_that_custody_forgot_is_destroyed_not_unknown() -> None:
    record = fresh().rotated(b"r" * 32, NOW, 4)
    assert record.active is not None
    assert record.active.number == 4
    with pytest.raises(KeyDestroyed):
        record.public_key(2)
    with pytest.raises(KeyNotFound):
        record.public_key(5)
