"""What is refused for good is kept with its reason, listed, shown, replayed once, or dropped."""

from __future__ import annotations

import pytest
from cramjam import snappy

from support.platform import Platform
from support.telemetry import SECOND, at, device, export, exported, otlp, samples, send, stored
from tensorguard.platform.principal import Role
from tensorguard.platform.telemetry.points import MAX_LETTER

PATH = "/api/v1/submissions"


def listed(platform: Platform, headers: dict, **query: str) -> list[dict]:
    answer = platform.client.get(PATH, headers=headers, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


@pytest.mark.invariant("TG-I40")
def test_of_500_with_3_bad_ones_497_are_stored_and_3_kept_with_reasons(platform: Platform) -> None:
    now = at(platform.clock())
    request = otlp(now, 497)
    points = request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points
    points.add(time_unix_nano=now, as_double=float("nan"))
    points.add(time_unix_nano=now + 301 * SECOND, as_double=1)
    points.add(time_unix_nano=now - 31 * 86_400 * SECOND, as_double=1)
    body = request.SerializeToString()
    headers = device(platform)
    for _ in range(2):  # the same again changes nothing
        partial = exported(export(platform, headers, body)).partial_success
    assert partial.rejected_data_points == 3
    assert stored(platform)["sample"] == 497
    reader = platform.caller(Role.viewer)
    found = listed(platform, reader)
    assert [one["reason"] for one in found] == [
        "the value is not a finite number",
        "its time is more than 5 minutes in the future",
        "its time is older than what is kept",
    ]
    assert {one["device_id"] for one in found} == {"arm-1"}
    detail = platform.client.get(f"{PATH}/{found[1]['id']}", headers=reader).json()
    metric = detail["content"]["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]
    assert metric["name"] == "joint.angle"
    assert metric["gauge"]["dataPoints"][0]["timeUnixNano"] == str(now + 301 * SECOND)


def test_a_replay_stores_under_the_first_senders_name_and_removes_the_letter(
    platform: Platform,
) -> None:
    now = at(platform.clock())
    early = {"name": "a", "value": 7, "ts": now + 400 * SECOND, "labels": {"joint": "1"}}
    send(platform, device(platform, "arm-7"), {"samples": [*samples(now), early]})
    operator = platform.caller(Role.operator)
    (letter,) = listed(platform, operator)
    again = platform.client.post(f"{PATH}/{letter['id']}/replay", headers=operator)
    assert again.status_code == 422
    assert again.json()["code"] == "submission_still_refused"
    platform.clock.advance(minutes=10)
    done = platform.client.post(f"{PATH}/{letter['id']}/replay", headers=operator)
    assert done.json()["accepted"] == 1, done.text
    assert listed(platform, operator) == []
    gone = platform.client.post(f"{PATH}/{letter['id']}/replay", headers=operator)
    assert gone.status_code == 404
    rows = platform.client.get(
        "/api/v1/telemetry/latest", headers=operator, params={"name": "a"}
    ).json()["items"]
    assert [(row["value"], row["series"]["device_id"]) for row in rows] == [(7, "arm-7")]


def test_a_letter_of_remote_write_is_shown_and_replayed(platform: Platform) -> None:
    from support.telemetry import write_request

    now = at(platform.clock())
    body = write_request({"__name__": "up"}, [(now // 10**6 + 400_000, 1.0)])
    sent = platform.client.post(
        "/api/v1/write",
        content=bytes(snappy.compress_raw(body)),
        headers={**device(platform), "content-type": "application/x-protobuf"},
    )
    assert sent.status_code == 204, sent.text
    assert sent.headers["x-prometheus-remote-write-samples-written"] == "0"
    operator = platform.caller(Role.operator)
    (letter,) = listed(platform, operator, device_id="arm-1")
    detail = platform.client.get(f"{PATH}/{letter['id']}", headers=operator).json()
    assert detail["content"][0]["name"] == "up"
    platform.clock.advance(minutes=10)
    done = platform.client.post(f"{PATH}/{letter['id']}/replay", headers=operator)
    assert done.json()["accepted"] == 1, done.text


def test_what_is_too_large_is_named_but_not_kept(sqlite_platform: Platform) -> None:
    now = at(sqlite_platform.clock())
    huge = {"name": "a", "value": 1, "ts": now, "labels": {"k": "v" * MAX_LETTER}}
    send(sqlite_platform, device(sqlite_platform), {"samples": [huge, *samples(now)]})
    operator = sqlite_platform.caller(Role.operator)
    (letter,) = listed(sqlite_platform, operator)
    assert not letter["replayable"]
    refused = sqlite_platform.client.post(f"{PATH}/{letter['id']}/replay", headers=operator)
    assert refused.json()["code"] == "submission_not_replayable"
    dropped = sqlite_platform.client.delete(f"{PATH}/{letter['id']}", headers=operator)
    assert dropped.status_code == 204
    assert listed(sqlite_platform, operator) == []


def test_other_tenants_and_viewers_cannot_touch_a_letter(platform: Platform) -> None:
    now = at(platform.clock())
    bad = {"name": "", "value": 1, "ts": now}
    send(platform, device(platform), {"samples": [bad]})
    (letter,) = listed(platform, platform.caller(Role.viewer))
    path = f"{PATH}/{letter['id']}"
    stranger = platform.caller(Role.admin, tenant="other")
    assert listed(platform, stranger) == []
    assert platform.client.get(path, headers=stranger).status_code == 404
    assert platform.client.post(f"{path}/replay", headers=stranger).status_code == 404
    assert platform.client.delete(path, headers=stranger).status_code == 404
    assert platform.client.delete(path, headers=platform.caller(Role.viewer)).status_code == 403
