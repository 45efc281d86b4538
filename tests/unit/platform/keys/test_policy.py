"""Policies: what is due follows from the policy, the versions and their history alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tensorguard.keys.provider import Algorithm, KeyInfo, KeyState, Purpose, key_id
from tensorguard.platform.keys.policy import BadPolicy, Due, Policy, Use, due

START = datetime(2030, 1, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
DAILY = Policy(period=DAY, overlap=HOUR)


def info(version: int, state: KeyState, *, disabled: bool = False) -> KeyInfo:
    return KeyInfo(
        key_id("k"),
        version,
        Algorithm.ed25519,
        Purpose.token_signing,
        state,
        START,
        disabled=disabled,
    )


ACTIVE = [info(1, KeyState.active)]
ROTATED = [info(1, KeyState.decrypt_only), info(2, KeyState.active)]
STAGED = [info(1, KeyState.active), info(2, KeyState.pending)]
FIRST = {1: Use(START)}
SECOND = {1: Use(START, START + DAY), 2: Use(START + DAY)}


@pytest.mark.parametrize(
    ("policy", "versions", "history", "after", "expected"),
    [
        (DAILY, ACTIVE, FIRST, 22 * HOUR, Due()),
        (DAILY, ACTIVE, FIRST, 23 * HOUR, Due(stage=True)),
        (DAILY, STAGED, FIRST, 23.5 * HOUR, Due()),
        (DAILY, STAGED, FIRST, 24 * HOUR, Due(rotate=True)),
        (DAILY, ACTIVE, FIRST, 24 * HOUR, Due(rotate=True)),
        (DAILY, ROTATED, SECOND, 24.5 * HOUR, Due()),
        (DAILY, ROTATED, SECOND, 25 * HOUR, Due(retire=(1,))),
        (Policy(period=DAY), ROTATED, SECOND, 40 * HOUR, Due()),
        (Policy(overlap=HOUR), ROTATED, SECOND, 400 * HOUR, Due(retire=(1,))),
        (Policy(), ROTATED, SECOND, 4000 * HOUR, Due()),
        (DAILY, ACTIVE, {}, 4000 * HOUR, Due()),  # nobody knows since when
        (DAILY, ACTIVE, SECOND, 4000 * HOUR, Due()),  # an answer from before the rotation
        (DAILY, [info(1, KeyState.active, disabled=True)], FIRST, 4000 * HOUR, Due()),
    ],
)
def test_due(
    policy: Policy,
    versions: list[KeyInfo],
    history: dict[int, Use],
    after: timedelta,
    expected: Due,
) -> None:
    assert due(policy, versions, history, now=START + after) == expected


def test_what_is_still_needed_is_not_retired() -> None:
    assert due(DAILY, ROTATED, SECOND, needed={1}, now=START + 30 * HOUR) == Due()


@pytest.mark.parametrize("span", [timedelta(0), timedelta(seconds=59), timedelta(days=4000)])
def test_a_policy_that_cannot_be_kept_is_refused(span: timedelta) -> None:
    with pytest.raises(BadPolicy):
        Policy(period=span)
    with pytest.raises(BadPolicy):
        Policy(overlap=span)
