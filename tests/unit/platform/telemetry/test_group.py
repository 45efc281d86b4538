"""A group is one transaction; a batch that the database refuses stands alone in the end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from support.platform import Platform
from support.telemetry import at, device, samples, send, stored
from tensorguard.platform.principal import Role
from tensorguard.platform.telemetry.intake import REFUSED_BY_DATABASE


@pytest.mark.invariant("TG-I40")
def test_a_batch_that_the_database_refuses_fails_none_of_its_neighbours(
    platform: Platform,
) -> None:
    headers, now = device(platform), at(platform.clock())

    def refuse(_c: object, _u: object, statement: str, parameters: object, *_: object) -> None:
        if "INSERT INTO series" in statement and "cursed" in str(parameters):
            raise IntegrityError(statement, None, Exception("no such thing"))

    event.listen(platform.state.engine, "before_cursor_execute", refuse)

    def one(number: int) -> dict:
        name = "cursed" if number == 5 else f"good.{number}"
        answer = send(platform, headers, {"samples": samples(now, 3, name=name)})
        assert answer.status_code == 200, answer.text
        return answer.json()

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(one, range(12)))
    event.remove(platform.state.engine, "before_cursor_execute", refuse)
    assert answers.pop(5) == {
        "accepted": 0,
        "duplicates": 0,
        "rejected": [{"index": i, "reason": REFUSED_BY_DATABASE} for i in range(3)],
        "rejected_total": 3,
    }
    assert all(answer["accepted"] == 3 for answer in answers)
    assert stored(platform) == {"series": 11, "sample": 33, "latest": 11, "batch": 12}
    assert one(5)["rejected_total"] == 3  # a retry gets the same answer
    operator = platform.caller(Role.operator)
    items = platform.client.get("/api/v1/submissions", headers=operator).json()["items"]
    assert [item["reason"] for item in items] == [REFUSED_BY_DATABASE]
    replayed = platform.client.post(
        f"/api/v1/submissions/{items[0]['id']}/replay", headers=operator
    )
    assert replayed.json()["accepted"] == 3, replayed.text
    assert stored(platform)["sample"] == 36


def test_many_at_once_share_transactions_and_each_gets_its_own_answer(
    platform: Platform,
) -> None:
    headers, now = device(platform), at(platform.clock())

    def one(number: int) -> tuple[int, int, int]:
        rows = samples(now, number + 1, name="shared")
        bad = [{"name": "", "value": 1, "ts": now}] * (number % 3)
        answer = send(platform, headers, {"samples": [*rows, *bad], "batch_id": f"b{number}"})
        body = answer.json()
        return body["accepted"], body["duplicates"], body["rejected_total"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(32)))
    for number, (accepted, duplicates, rejected) in enumerate(answers):
        assert accepted + duplicates == number + 1
        assert rejected == number % 3
    assert sum(accepted for accepted, _, _ in answers) == 32
    assert stored(platform)["sample"] == 32
    exposition = platform.client.get("/metrics").text
    assert "tensorguard_telemetry_group_batches_count" in exposition
    assert "tensorguard_telemetry_waiting_batches 0.0" in exposition
